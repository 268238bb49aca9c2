"""Turn the formats that the sources come in into plain text: pure functions over bytes."""

import ast
import gzip
import io
import re
import struct
import tarfile
import zlib

BLOCK_RECORD = struct.Struct("<III")  # one block of a zText module: offset, compressed size, size


def tar_members(archive: bytes, pattern: str) -> dict[str, bytes]:
    """Return the contents of the archive's files whose name matches `pattern`, by name, sorted by name."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = [member for member in tar.getmembers() if member.isfile() and re.search(pattern, member.name)]
        return {member.name: tar.extractfile(member).read() for member in sorted(found, key=lambda m: m.name)}


def tidy(text: str) -> str:
    """Drop spaces at line ends and leave at most one empty line between paragraphs."""
    text = re.sub(r"[ \t]+$", "", text.replace("\r\n", "\n"), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def osis_text(markup: str) -> str:
    """Return the plain text of OSIS markup. Titles and notes are dropped; paragraphs and chapters start a new line."""
    markup = re.sub(r"<(title|note)\b[^>]*>.*?</\1>", "", markup, flags=re.DOTALL)
    markup = re.sub(r"<(?:chapter|div)\b[^>]*>", "\n", markup)
    text = re.sub(r"<[^>]+>", "", markup)
    for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(entity, char)
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line) + "\n"


def ztext_books(records: bytes, blocks: bytes) -> dict[str, str]:
    """Return the books of a zText module that is compressed book by book, as plain text.

    Args:
        records: the `.bzs` file, 12 bytes per block: offset, compressed size and size, little-endian.
        blocks: the `.bzz` file, zlib streams of OSIS markup in UTF-8.

    Returns:
        Text by OSIS book name ("Gen", "Mark"); blocks that start no book are skipped.
    """
    books = {}
    for offset, compressed, size in BLOCK_RECORD.iter_unpack(records):
        markup = zlib.decompress(blocks[offset : offset + compressed])
        if len(markup) != size:
            raise ValueError(f"the zText block at byte {offset} has {len(markup)} bytes, but its record says {size}")
        name = re.search(rb'<div[^>]*\bosisID="([^"]+)"[^>]*\btype="book"', markup)
        if name:
            books[name[1].decode()] = osis_text(markup.decode("utf-8"))
    return books


def verse_table_books(module: str) -> list[str]:
    """Return the books of a pythonbible module: one long string, then a table from verse number (BBCCCVVV) to start."""
    start = module.index('"""')
    end = module.index('"""', start + 3) + 3
    text = ast.literal_eval(module[start:end])
    table = module[end : module.index("}", end)]
    first_of_book: dict[int, int] = {}
    for verse, offset in re.findall(r"(\d{7,8}): (\d+)", table):
        first_of_book.setdefault(int(verse) // 1_000_000, int(offset))
    bounds = [*sorted(first_of_book.values()), len(text)]
    return [tidy(text[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]


def dictionary_entries(compressed: bytes) -> dict[str, str]:
    """Return the entries of a dict file by headword, one line per paragraph, in plain punctuation. Dictzip is gzip."""
    text = gzip.decompress(compressed).decode("utf-8")
    entries = {}
    for head, body in re.findall(r"^(\S[^\n]*)\n[^\n]*\n\n((?: {4}[^\n]*\n|\n)+)", text, flags=re.MULTILINE):
        blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", body))
        paragraphs = [_plain_punctuation(block) for block in blocks if _is_prose(block)]
        if paragraphs:
            entries[head] = f"{head}\n\n" + "\n\n".join(paragraphs) + "\n"
    return entries


def _is_prose(block: str) -> bool:
    return len(block) > 40 and sum(c.isalpha() or c == " " for c in block) > 0.85 * len(block)


PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "´": "'", "\u00ad": None, "{": None, "}": None})


def _plain_punctuation(text: str) -> str:
    text = re.sub(r"([“‘{(]) ", r"\1", text)
    text = re.sub(r" ([”’})])", r"\1", text)
    return text.translate(PLAIN)
