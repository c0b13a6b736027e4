"""The columns of relabelled lists are found by their names, and never guessed among several."""

import pytest

from lotlip_data.manifests.sources.column_names import (
    FIND,
    FOUND_CAPTIONERS,
    ColumnChoiceError,
    FoundColumns,
    captioners_in,
    find_columns,
)


def find(names: str, file_name: str = "list.csv") -> FoundColumns:
    return find_columns(names.split(","), FIND, FIND, dict.fromkeys(FOUND_CAPTIONERS, FIND), file_name)


@pytest.mark.parametrize(
    ("names", "url", "text", "captions"),
    [
        (  # DreamLIP, as published
            "Image Path,raw_caption,shortIB_captions,longIB_captions,shortSV_captions,longSV_captions,"
            "shortLLA_captions,longLLA_captions",
            "Image Path",
            "raw_caption",
            ("longIB_captions", "longLLA_captions", "longSV_captions"),
        ),
        ("url,raw,IB,SV,LLA", "url", "raw", ("IB", "LLA", "SV")),
        ("URL,TEXT,long_ib,long_sv,long_lla", "URL", "TEXT", ("long_ib", "long_lla", "long_sv")),
        (
            "image_url,caption,InstructBLIP,ShareGPT4V,LLaVA",
            "image_url",
            "caption",
            ("InstructBLIP", "LLaVA", "ShareGPT4V"),
        ),
        (
            "img-link,Alt Text,instruct_blip_caption,share-gpt4v,llava-1.5 caption",
            "img-link",
            "Alt Text",
            ("instruct_blip_caption", "llava-1.5 caption", "share-gpt4v"),
        ),
        (
            "url,longib_captions,longSVcaptions,LONGLLA_CAPTION,rawcaption",
            "url",
            "rawcaption",
            ("longib_captions", "LONGLLA_CAPTION", "longSVcaptions"),
        ),
        (
            "id,license_url,url,IBCaption,IB_score,ib_length,captionSV,lla",
            "url",
            None,
            ("IBCaption", "lla", "captionSV"),
        ),
    ],
)
def test_each_column_is_found_in_the_spellings_of_several_releases(
    names: str, url: str, text: str | None, captions: tuple[str, ...]
) -> None:
    found = find(names)
    assert (found.url, found.text) == (url, text)
    assert found.captions == dict(zip(FOUND_CAPTIONERS, captions, strict=True))
    assert {found.url, found.text, *captions, *found.others} - {None} == set(names.split(","))


@pytest.mark.parametrize("name", ["attribute", "csv", "library", "visvalue", "IBM", "SVG", "collage", "url", "ibis"])
def test_a_short_name_inside_another_word_is_no_captioner(name: str) -> None:
    assert captioners_in(name) == []


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        ("url,image_url,IB", "url", "several columns can hold the URLs: 'url', 'image_url'"),
        ("url,URL,IB", "url", "several columns can hold the URLs: 'url', 'URL'"),
        ("url,IB_a,IB_b", "instructblip", "several columns can hold the long texts of instructblip: 'IB_a', 'IB_b'"),
        ("url,IB,IB", "instructblip", "several columns can hold the long texts of instructblip: 'IB', 'IB'"),
        ("url,raw_caption,raw_text,IB", "text", "several columns can hold the raw texts: 'raw_caption', 'raw_text'"),
        ("caption,IB", "url", "no column's name says that it holds the URLs; its columns are 'caption', 'IB'"),
    ],
)
def test_of_several_columns_none_is_chosen_and_all_are_named(names: str, wanted: str, message: str) -> None:
    with pytest.raises(ColumnChoiceError) as raised:
        find(names)
    assert (raised.value.wanted, str(raised.value)) == (wanted, message)


def test_a_file_of_one_captioner_can_say_so_in_its_own_name() -> None:
    found = find("url,raw_caption,long_caption", "recap_coyo_IB.csv")
    assert (found.text, found.captions) == ("raw_caption", {"instructblip": "long_caption"})
    found = find("url,caption", "recap-coyo-ShareGPT4V.csv")
    assert (found.text, found.captions) == (None, {"sharegpt4v": "caption"})
    assert find("url,caption", "recap-coyo.csv").captions == {}
    assert find("url,caption,longSV", "recap-coyo-llava.csv").captions == {"sharegpt4v": "longSV"}
    assert find("url,caption", "llava-and-sharegpt4v.csv").captions == {}
    with pytest.raises(ColumnChoiceError, match="which the file's name names: 'caption_a', 'caption_b'"):
        find("url,caption_a,caption_b", "llava.csv")


def test_a_column_that_is_named_is_taken_and_the_others_are_found() -> None:
    captions = {"instructblip": FIND, "mine": "SV_captions", "gone": "nowhere"}
    found = find_columns(["link", "url", "IB", "SV_captions", "alt"], "link", FIND, captions)
    assert found == FoundColumns("link", "alt", {"instructblip": "IB", "mine": "SV_captions"}, ("url",))
