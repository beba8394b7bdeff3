"""Content types by the suffix of a file's name, the same on each machine."""

import mimetypes
import os

# Over the defaults of mimetypes, never the machine's own table: what they lack, or had otherwise
# in some version of Python. XML tells its encoding itself, which a charset would override.
_NEWER = {
    "application/epub+zip": ".epub",
    "application/geo+json": ".geojson",
    "application/gzip": ".gz .tgz .svgz",
    "application/json": ".json .map",
    "application/ld+json": ".jsonld",
    "application/manifest+json": ".webmanifest",
    "application/toml": ".toml",
    "application/wasm": ".wasm",
    "application/x-7z-compressed": ".7z",
    "application/x-bzip2": ".bz2",
    "application/x-xz": ".xz",
    "application/xml": ".xml",
    "application/yaml": ".yaml .yml",
    "application/zstd": ".zst",
    "application/atom+xml": ".atom",
    "application/rss+xml": ".rss",
    "audio/flac": ".flac",
    "audio/mp4": ".m4a",
    "audio/ogg": ".oga .ogg .opus",
    "audio/wav": ".wav",
    "font/otf": ".otf",
    "font/ttf": ".ttf",
    "font/woff": ".woff",
    "font/woff2": ".woff2",
    "image/apng": ".apng",
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/jxl": ".jxl",
    "image/svg+xml": ".svg",
    "image/webp": ".webp",
    "text/calendar": ".ics",
    "text/javascript": ".js .mjs .cjs",
    "text/markdown": ".md .markdown",
    "text/plain": ".log .txt",
    "video/mp2t": ".ts",
    "video/mp4": ".m4v .mp4",
    "video/ogg": ".ogv",
    "video/webm": ".webm",
}
_TYPES = dict(mimetypes.MimeTypes().types_map[True])
_TYPES.update((suffix, type_) for type_, all_ in _NEWER.items() for suffix in all_.split())


def content_type(name: str) -> str:
    """By the last suffix alone: ``.tar.gz`` is gzip, and not tar with a Content-Encoding, since a
    client that is told of one saves the file decoded."""
    type_ = _TYPES.get(os.path.splitext(name)[1].lower(), "application/octet-stream")
    return f"{type_}; charset=utf-8" if type_.startswith("text/") else type_
