"""What a browser says: Chromium follows the redirect to https, and speaks HTTP/2 there."""

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from pyproxy import Proxy
from pyproxy.lab.certificate import make_certificate
from tests.support import RawTarget, answer, eventually, replying

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not on PATH")
pytest.importorskip("cryptography", reason="makes the certificate (extra tls-tools)")
pytest.importorskip("h2", reason="speaks HTTP/2 (extra http2)")

PAGE = """<!doctype html><title>seminar</title><p id="said">nothing</p><script>
const [navigation] = performance.getEntriesByType("navigation");
Promise.all([1, 2, 3, 4, 5, 6].map(at => fetch("/target?" + at).then(r => r.text()))).then(all => {
  const protocols = performance.getEntriesByType("resource").map(one => one.nextHopProtocol);
  document.getElementById("said").textContent =
    [location.protocol, navigation.nextHopProtocol, ...protocols, ...all].join(" ");
});
</script>"""


def rendered(url: str, folder: Path, tries: int = 3) -> str:
    """The page's own words, once its script has run."""
    assert CHROMIUM
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--ignore-certificate-errors", f"--user-data-dir={folder / 'profile'}"),
            *("--virtual-time-budget=10000", "--dump-dom", url),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout.partition('id="said">')[2].partition("</p>")[0]
    if tries and ("ERR_NETWORK_CHANGED" in done.stderr or said == "nothing"):
        # A network came or went meanwhile, one of Docker's for example: Chromium dropped all.
        return rendered(url, folder, tries - 1)
    assert said, done.stderr
    return said


def test_a_browser_is_led_to_https_and_speaks_http2(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(["seminar.localhost"], certificate, key)
    targets = [RawTarget(replying(answer(letter))) for letter in "abc"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text(PAGE)
    for target in targets:
        target.__enter__()
    try:
        with Proxy(
            listen=[{"url": "http://127.0.0.1:0", "redirect": "https"}, "https://127.0.0.1:0"],
            tls={"certificate": str(certificate), "key": str(key)},
            routes=[
                {"path": "/target", "targets": [one.url for one in targets]},
                {"path": "/", "files": str(tmp_path / "site")},
            ],
            sleeping=60,
        ) as proxy:
            port = next(url for url in proxy.urls if url.startswith("http:")).rpartition(":")[2]
            address = f"http://seminar.localhost:{port}/"
            said = rendered(address, tmp_path).split()
            assert said[0] == "https:"
            # The page, the six answers, and perhaps the icon that Chromium looks for.
            assert len(said[1:-6]) >= 7
            assert set(said[1:-6]) == {"h2"}
            assert sorted(said[-6:]) == [*"aabbcc"]
            targets[1].stop()
            said = rendered(address, tmp_path).split()
            assert set(said[-6:]) == {"a", "c"}, "one is down, and the page is whole"
            assert [one.url for one in proxy.pool.evicted()] == [targets[1].url]
    finally:
        for target in targets:
            target.__exit__(None, None, None)
        eventually(lambda: not [t for t in threading.enumerate() if "pyproxy" in t.name])
