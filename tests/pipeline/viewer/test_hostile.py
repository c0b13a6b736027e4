"""Text from the web cannot act in a page, another site cannot use the server, and no file outside the run is served."""

import html.parser
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.downloading.commit import QUARANTINE
from lotlip_data.pipeline.viewer.app import View, create_app
from tests.pipeline import run_fixture
from tests.pipeline.viewer import dataset_fixture

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</p></article></body><h1>mine",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "&lt;b&gt; &#60;i&#62;",
    "nul\x00bell\x07escape\x1b",
    "right to left \u202etxt.exe\u202c \u2066isolate soft\u00adhyphen tag\U000e0041",
    "'; DROP TABLE samples; --",
    "]]><!--",
)
HTML = b"<html><script>alert(1)</script></html>"


def hostile(number: int, row: dataset_fixture.Row) -> None:
    text = HOSTILE[number % len(HOSTILE)]
    row |= {"raw": text, "raws": [text, text], "sources": ["web", text], "llava": f"{text} is said. {text}"}
    row |= {"llava_sub": [f"{text} is said.", text], "llava_flags": text.split()[0], "url": text, "uid": text}
    row |= {"source": text}
    if number == 1:
        row["image"] = HTML


class Page(html.parser.HTMLParser):
    """Collects the tags of a page, their attributes, its scripts, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = dataset_fixture.make(tmp_path_factory.mktemp("hostile") / "run", change=hostile)
    rows = [dict.fromkeys(QUARANTINE.names, text) for text in HOSTILE]
    storage.create(run.quarantine("images", "00000.parquet"), run_fixture.parquet(rows, QUARANTINE))
    storage.create(run.quarantine("<b>", "0.parquet"), run_fixture.parquet(rows, QUARANTINE))
    dropped = [
        dict.fromkeys(schema.DROPPED.names, text)
        | {"distance": 3, "what": "sample", "reason": "near_duplicate", "key": "000000000"}
        for text in (*HOSTILE, "000000001", "9" * 24)
    ]
    storage.create(run.quarantine("shard", "00000-0.parquet"), run_fixture.parquet(dropped, schema.DROPPED))
    return run


@pytest.fixture(scope="module")
def web(run: Run) -> TestClient:
    return TestClient(create_app(View(run, seconds=60.0)), base_url="http://localhost")


PATHS = [
    "/",
    "/?show=images",
    *(f"/sample/0/{row}" for row in range(10)),
    "/quarantine",
    "/quarantine?kind=%3Cb%3E&reason=%22%3E%3Cscript%3E",
    "/quarantine?kind=images&is=%3Cscript%3Ealert(1)%3C/script%3E",
    "/quarantine?kind=shard",
    "/?show=short&sort=longest",
    "/sample/0/2?list=q%3D%253Cscript%253E%26show%3Dshort",
    "/?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E",
    "/?text=%3Cscript%3E",
    "/?flag=%3Cscript%3E",
    "/search?text=%3Cscript%3E",
    "/%3Cscript%3E",
]


@pytest.mark.parametrize("path", PATHS)
def test_text_from_the_web_stays_text(web: TestClient, path: str) -> None:
    answer = web.get(path)
    page = Page(answer.text)
    assert page.scripts == [{"src": "/view.js", "defer": None}] and "defer></script>" in answer.text
    assert not page.tags & {"iframe", "object", "b-", "i", "h1", "base", "embed", "svg"}
    for name, value in page.attributes:
        assert not name.startswith("on") and name not in ("style", "srcdoc")
        assert name not in ("href", "src", "action") or value.startswith(("/", "?", "#")), value
    assert not set(answer.text) & set("\x00\x07\x1b\u202e\u202c\u2066\u00ad\U000e0041")


def test_texts_are_shown_unchanged_with_invisible_characters_spelled_out(web: TestClient) -> None:
    words = Page(web.get("/").text).text
    for text in HOSTILE[:6]:
        assert words.count(text) >= 3
    assert "nul‹U+0000›bell‹U+0007›escape‹U+001B›" in words
    assert "right to left ‹U+202E›txt.exe‹U+202C› ‹U+2066›isolate soft‹U+00AD›hyphen tag‹U+E0041›" in words


@pytest.mark.parametrize("form", ["/?q=", "/quarantine?reason="])
def test_a_form_field_keeps_invisible_characters_so_that_they_are_submitted_again(web: TestClient, form: str) -> None:
    typed = 'soft\u00adhyphen <b>"x"'
    page = Page(web.get(form + quote(typed)).text)
    assert ("value", typed) in page.attributes


def test_only_http_and_https_urls_become_links(tmp_path: Path) -> None:
    urls = [
        "http://x/a.jpg",
        "HTTPS://x/b.jpg",
        "javascript:alert(1)",
        "data:text/html,x",
        " http://x",
        "//x/y",
        "file:///etc/passwd",
    ]
    run = dataset_fixture.make(
        tmp_path / "run", shards=1, samples=len(urls), change=lambda n, row: row.update(url=urls[n])
    )
    web = TestClient(create_app(View(run, seconds=60.0)), base_url="http://localhost")
    linked = [("href", url) in Page(web.get(f"/sample/0/{row}").text).attributes for row, url in enumerate(urls)]
    assert linked == [True, True, False, False, False, False, False]


@pytest.mark.parametrize("path", ["/sample/0/7.json", "/uids", "/quarantine/uids?kind=images", "/view.js"])
def test_a_file_to_download_is_never_a_page(web: TestClient, path: str) -> None:
    answer = web.get(path)
    assert answer.status_code == 200 and answer.headers["content-type"].partition(";")[0] in (
        "application/json",
        "text/plain",
        "text/javascript",
    )
    assert not set(answer.text) & set("\x00\x07\x1b\u202e\u202c\u2066\u00ad\U000e0041")
    if path != "/view.js":
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert web.get(path, headers={"sec-fetch-site": "cross-site", "sec-fetch-dest": "script"}).status_code == 403


def test_content_that_is_not_a_jpeg_is_not_served(web: TestClient) -> None:
    answer = web.get("/image/0/1")
    assert answer.status_code == 404 and HTML not in answer.content and "not a JPEG" in answer.text


@pytest.mark.parametrize("path", ["/", "/image/0/0", "/image/0/1", "/style.css", "/nothing", "/report", "/quarantine"])
def test_every_response_forbids_foreign_scripts_and_content_sniffing(web: TestClient, path: str) -> None:
    headers = web.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    directives = dict(directive.split(maxsplit=1) for directive in policy.split("; "))
    assert directives["script-src"] == "'self'" and directives["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin" and "server" not in headers


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.7", ""]
)
def test_requests_to_other_host_names_are_rejected(web: TestClient, host: str) -> None:
    answer = web.get("/", headers={"host": host})
    assert answer.status_code == 400 and "circle" not in answer.text and "location" not in answer.headers


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:8765"])
def test_requests_to_loopback_names_are_answered(web: TestClient, host: str) -> None:
    assert web.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://localhost:3000", "https://localhost"])
def test_a_page_of_another_site_cannot_start_a_computation(web: TestClient, origin: str | None) -> None:
    headers = {} if origin is None else {"origin": origin}
    assert web.post("/features", headers=headers).status_code == 403
    assert web.get("/features").status_code == 405


@pytest.mark.parametrize("site", ["cross-site", "same-site"])  # same-site: another port of localhost
@pytest.mark.parametrize("path", ["/map/0/0/0?of=raw", "/search?text=x", "/sample/0/0?of=raw", "/?q=x", "/image/0/0"])
def test_a_page_of_another_site_gets_no_computed_content(web: TestClient, path: str, site: str) -> None:
    statuses = [
        web.get(path, headers={"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}).status_code
        for mode, dest in (("no-cors", "image"), ("navigate", "iframe"), ("no-cors", "script"), ("cors", "empty"))
    ]
    assert statuses == [403] * 4
    followed = web.get(
        path, headers={"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    )
    assert followed.status_code == (403 if "?" in path else 200)  # a link may lead to a page, but without a query
    for own_site in ("none", "same-origin"):
        assert web.get(path, headers={"sec-fetch-site": own_site}).status_code == web.get(path).status_code != 403


@pytest.mark.parametrize(
    "path",
    [
        "/image/../../../../etc/passwd",
        "/image/%2e%2e/%2e%2e/etc/passwd",
        "/image/0/..%2f..%2fetc%2fpasswd",
        "/image/-1/0",
        "/image/0/-1",
        "/image/99999999999999999999/0",
        f"/image/{'9' * 5000}/0",
        f"/sample/0/{'9' * 5000}",
        "/sample/0/1e3",
        "/quarantine?kind=../../../../etc",
        "/quarantine?kind=/etc",
        "/quarantine/uids?kind=../../../../etc",
        "/picture/0/..%2f..%2fetc%2fpasswd",
        "/picture/0/000000000",
        f"/picture/0/{'9' * 5000}",
        "/sample/0/../../etc/passwd.json",
        "/static/../app.py",
        "/..%2fmanifest.yaml",
    ],
)
def test_no_path_leads_outside_the_run(web: TestClient, path: str) -> None:
    answer = web.get(path)
    assert answer.status_code == 404 and "root:" not in answer.text


@pytest.mark.parametrize("name", ["../secret.tar", "/etc/passwd", "s3://x/y.tar", "a/b.tar", "..", ""])
@pytest.mark.parametrize("which", ["tar", "parquet"])
def test_a_dataset_that_names_files_outside_its_folder_is_rejected(tmp_path: Path, which: str, name: str) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=1)
    content = json.loads(Path(run.dataset).read_text())
    content["shards"][0][which]["name"] = name
    Path(run.dataset).write_text(json.dumps(content))
    answer = TestClient(create_app(View(run, seconds=60.0)), base_url="http://localhost").get("/")
    assert answer.status_code == 404 and "outside its folder" in answer.text
