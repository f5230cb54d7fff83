"""What general compressors need for the same bytes: the yardstick for bits per byte."""

import gzip
import lzma

# xz takes about a second a megabyte: a larger text would hold up the run
LIMIT = 32_000_000


def bits_per_byte(content: bytes) -> dict[str, float]:
    """gzip -9 and xz -9, whole files with their headers; empty for an empty text and for one above LIMIT bytes."""
    if not content or len(content) > LIMIT:
        return {}
    sizes = {"gzip -9": len(gzip.compress(content, 9)), "xz -9": len(lzma.compress(content, preset=9))}
    return {name: 8 * size / len(content) for name, size in sizes.items()}
