"""An X-Robots-Tag header that forbids the use of an image is honoured in every form that hosts send."""

import pytest

from lotlip_data.pipeline.downloading.consent import agent_names, forbids

NAMES = agent_names("lotlip-data")


@pytest.mark.parametrize(
    "headers",
    [
        ["noindex"], ["noai, noimageai"], ["NoImageIndex"], ["none"], ["noml"], ["nofollow;noai"], ["noindex nofollow"],
        ["max-image-preview:large, noai"], ["max-snippet: -1, max-image-preview: large, noindex"],
        ["noindex, unavailable_after: 25 Jun 2010 15:00:00 PST"],
        ["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"],
        ["unavailable_after: 25 Jun 2100 15:00:00 PST, noindex"],
        ["unavailable_after: Friday, 25-Jun-10 15:00:00 PST, max-snippet:3"],
        ["unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT"], ["UNAVAILABLE_AFTER: 2010-06-25T15:00:00+02:00"],
        ["unavailable_after: 2010-06-25"], ["unavailable_after: Fri, 25 Jun 2100 15:00:00 GMT, noai"],
        ["all", "noai"], ["googlebot: nofollow", "noindex"], ["*: noindex"], ["googlebot: noindex, lotlip-data: noai"],
        ["Lotlip-Data: nofollow, NOAI"], ["img2dataset: noai"],
        ["lotlip-data: unavailable_after: 25 Jun 2010 15:00:00 PST"],
        ["lotlip-data:max-snippet:1,noindex"], ["noai: true"], ["  noindex ,"], ['"noai"'], ["noai."],
        ["[noai, noimageai]"], ["noai=1"], ["unavailable_after: 25 Jun 2010"],
    ],
)  # fmt: skip
def test_a_header_that_forbids_use_is_honoured(headers: list[str]) -> None:
    assert forbids(headers, NAMES)


@pytest.mark.parametrize(
    "headers",
    [
        [], [""], ["all"], ["nofollow, noarchive"], ["googlebot: noindex"], ["googlebot: nofollow, noindex"],
        ["otherbot: max-image-preview: large, noai"], ["unavailable_after: 25 Jun 2100 15:00:00 PST"],
        ["unavailable_after: Fri, 25 Jun 2100 15:00:00 GMT"], ["unavailable_after: some day"], ["max-snippet: 0"],
        ["googlebot: unavailable_after: 25 Jun 2010 15:00:00 PST"], [",,:,"], ["mozilla: noindex"], ["none-such"],
    ],
)  # fmt: skip
def test_a_header_that_forbids_nothing_or_addresses_another_client_is_not(headers: list[str]) -> None:
    assert not forbids(headers, NAMES)


def test_a_client_is_addressed_by_the_names_in_its_user_agent() -> None:
    names = agent_names("MyBot/1.0 (+https://example.org/noise; contact me)")
    assert forbids(["mybot: noindex"], names)
    assert forbids(["lotlip-data: noindex"], names)
    assert not forbids(["example: noindex"], names)
    assert not forbids(["mozilla: noindex"], agent_names(None))
