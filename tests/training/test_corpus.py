"""The corpus: generators keep their promises, parsers read tiny files made by hand, wrong files are refused."""

import gzip
import io
import os
import random
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from itertools import islice

import pytest

from mixtral_edu.training.corpus import (
    DOMAINS,
    PROBES,
    SOURCES,
    Source,
    arithmetic,
    chats,
    default_cache,
    fetch,
    hero_of,
    is_held_out,
    is_right,
    is_unseen_sum,
    keeps_hero,
    load_chats,
    load_documents,
    names_all,
    quiz,
    stories,
    story_requests,
)
from mixtral_edu.training.corpus.facts import FACTS, OPPOSITES, number_words
from mixtral_edu.training.corpus.parsers import (
    dictionary_entries,
    osis_text,
    tar_members,
    verse_table_books,
    ztext_books,
)
from mixtral_edu.training.corpus.plots import PLOTS
from mixtral_edu.training.corpus.sources import is_held_out_work, read_python
from mixtral_edu.training.corpus.storytelling import draw_request, write_story
from mixtral_edu.training.corpus.words import ANIMALS, COLOURS, HERO_NAMES, OBJECTS, STORY, has_word

STORIES = list(islice(stories(3), 400))
CHATS = list(islice(chats(3), 1500))
PAGES = list(islice(arithmetic(3), 60))


def triple_of(story: str) -> tuple[str, str, str]:
    """Animal and colour from the story's first sentence; the object is the one object it names."""
    first = re.split(r"[.!?]", story, maxsplit=1)[0]
    colour, animal = re.search(rf"\b({'|'.join(COLOURS)}) ({'|'.join(ANIMALS)})\b", first).groups()
    objects = [obj for obj in OBJECTS if has_word(story, obj)]
    assert len(objects) == 1, objects
    return animal, colour, objects[0]


def story_turns(conversations: list) -> list[tuple[str, str]]:
    pairs = [(c[i]["content"], c[i + 1]["content"]) for c in conversations for i in range(0, len(c), 2)]
    return [(prompt, reply) for prompt, reply in pairs if len(reply) > 200]


def test_generators_repeat_for_the_same_seed_in_another_process():
    code = (
        "from mixtral_edu.training.corpus import *; from itertools import islice\n"
        "print(repr((next(stories(3)), next(arithmetic(3)), list(islice(chats(3), 5)), quiz(8, 3), "
        "story_requests(3, 3))))"
    )
    env = os.environ | {"PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert out.strip() == repr((STORIES[0], PAGES[0], CHATS[:5], quiz(8, 3), story_requests(3, 3)))
    assert next(stories(4)) != STORIES[0]


def test_no_training_story_is_about_a_held_out_triple():
    replies = [reply for _, reply in story_turns(CHATS)]
    assert len(replies) > 500
    assert not any(is_held_out(*triple_of(story)) for story in STORIES + replies)


def test_held_out_stories_and_requests_are_about_held_out_triples_only():
    assert all(is_held_out(*triple_of(story)) for story in load_documents("stories", "heldout"))
    assert all(is_held_out(*triple_of(reply)) for _, reply in story_turns(load_chats("heldout")))
    requests = story_requests(200, 1)
    assert all(is_held_out(r["animal"], r["colour"], r["object"]) for r in requests)
    assert all(names_all(r, r["prompt"]) for r in requests)


def test_about_a_tenth_of_triples_and_sums_is_held_out():
    triples = [is_held_out(a, c, o) for a in ANIMALS for c in COLOURS for o in OBJECTS]
    assert 0.08 < sum(triples) / len(triples) < 0.12
    sums = [is_unseen_sum(a, b) for a in range(21) for b in range(a, 21)]
    assert 0.06 < sum(sums) / len(sums) < 0.14
    assert all(is_unseen_sum(a, b) == is_unseen_sum(b, a) for a in range(21) for b in range(21))


def test_no_training_text_shows_a_held_out_sum():
    text = "\n".join(PAGES + [m["content"] for chat in CHATS for m in chat])
    # Two terms only: neither a further term nor a further digit may stand beside them.
    shown = re.findall(r"(?<![\d+] )(?<!\d)(\d+) (?:\+|plus) (\d+)(?!\d| \+)", text)
    given = re.findall(r"has (\d+) \w+\. \w+ gives her (\d+) more", text)
    assert len(shown) > 200 and len(given) > 10
    assert not any(is_unseen_sum(int(a), int(b)) for a, b in shown + given)


@pytest.mark.parametrize("plot", PLOTS)
def test_every_plot_names_what_was_asked_and_keeps_its_hero(plot):
    rng = random.Random(1)
    for short in (True, False):
        request = draw_request(rng)
        story = write_story(rng, request, plot, short=short)
        assert names_all(vars(request), story) and keeps_hero(story) and "{" not in story


def test_stories_have_their_length_their_hero_and_the_right_articles():
    replies = [reply for _, reply in story_turns(CHATS)]
    assert all(100 <= len(story.split()) <= 180 and 2 <= len(story.split("\n\n")) <= 4 for story in STORIES)
    assert all(60 <= len(reply.split()) <= 85 and "\n" not in reply for reply in replies)
    for story in STORIES + replies:
        assert keeps_hero(story) and story.count(hero_of(story)) >= 3, story
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou\W]", story), story
        assert not re.search(r"(?:^|[.!?] |\n)[a-z]", story), story
    assert sum(story.startswith("Once upon a time") for story in STORIES) > 60


def test_pronouns_fit_the_hero():
    for story in STORIES:
        first = re.split(r"\b(?:One|Early|But|Early) ", story)[0]
        other = r"\b(he|his|him)\b" if hero_of(story) in STORY["hero_names"]["she"] else r"\b(she|her)\b"
        assert not re.search(other, first, re.IGNORECASE), story


def test_heroes_and_friends_share_no_name():
    friends = STORY["friend_names"]["she"] + STORY["friend_names"]["he"]
    names = HERO_NAMES + friends
    assert len(set(names)) == len(names)


def test_every_line_of_arithmetic_is_true():
    for page in PAGES:
        title, *lines = page.split("\n")
        assert title[0].isupper() and 20 <= len(lines) <= 30
        for line in lines:
            numbers = [int(n) for n in re.findall(r"\d+", line)]
            if "has" in line:
                assert numbers[2] == (numbers[0] - numbers[1] if "She gives" in line else numbers[0] + numbers[1])
            elif "," in line:
                assert len({b - a for a, b in zip(numbers, numbers[1:], strict=False)}) == 1
            else:
                assert re.fullmatch(r"[\d +*/<>=-]+", line) and eval(re.sub(r"(?<= )=(?= )", "==", line)), line


def test_chats_alternate_and_answer_rightly():
    for chat in CHATS:
        assert [m["role"] for m in chat] == ["user", "assistant"] * (len(chat) // 2) and 2 <= len(chat) <= 8
        for question, answer in ((chat[i]["content"], chat[i + 1]["content"]) for i in range(0, len(chat), 2)):
            if sum_ := re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)\.", answer):
                a, sign, b, result = sum_.groups()
                assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
                assert {a, b} == set(re.findall(r"\d+", question))
    assert {len(chat) for chat in CHATS} == {2, 4, 6, 8}


def test_story_requests_are_answered_with_what_they_name():
    for prompt, reply in story_turns(CHATS):
        animal, colour, obj = triple_of(reply)
        assert names_all({"animal": animal, "colour": colour, "object": obj}, prompt), (prompt, reply)


def test_quiz_is_even_distinct_and_tells_seen_from_unseen():
    questions = quiz(80, 5)
    kinds = [q["kind"] for q in questions]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ["sum", "capital", "opposite", "number word"], 20
    )
    assert len({q["prompt"] for q in questions}) == 80 and all(q["seen"] for q in questions)
    unseen = [q for q in quiz(80, 5, unseen_sums=True) if q["kind"] == "sum"]
    assert len(unseen) == 20
    for q in unseen:
        a, b = map(int, re.findall(r"\d+", q["prompt"]))
        assert is_unseen_sum(a, b) and not q["seen"] and q["answer"] == str(a + b)


def test_number_words_and_opposites():
    assert [number_words(n) for n in (0, 13, 20, 42, 99, 100)] == [
        "zero", "thirteen", "twenty", "forty-two", "ninety-nine", "one hundred"]  # fmt: skip
    assert len({number_words(n) for n in range(101)}) == 101
    assert all(OPPOSITES[OPPOSITES[word]] == word for word in OPPOSITES)
    assert len(set(FACTS["capitals"].values())) == len(FACTS["capitals"])
    with pytest.raises(ValueError, match="101"):
        number_words(101)


def test_graders():
    request = {"animal": "fox", "colour": "red", "object": "lamp"}
    assert names_all(request, "A Red fox had a lamp.")
    assert not names_all(request, "Two red foxes had a lamp.")
    assert is_right({"answer": "19"}, "12 + 7 = 19.") and not is_right({"answer": "19"}, "19, or 12 + 7 = 20.")
    assert is_right({"answer": "Paris"}, "The capital is paris.") and not is_right({"answer": "two"}, "forty-two")
    assert keeps_hero("Mia was a fox. Bob saw Mia.")
    assert not keeps_hero("Mia was a fox. Bob saw Tom and Mia.")
    assert not keeps_hero("Mia was a fox. Bob saw her.") and not keeps_hero("A fox ran. Mia laughed. Mia ran.")


def test_ztext_books_are_read_and_a_wrong_size_is_refused():
    markup = (
        b'<div osisID="Ruth" sID="a" type="book"/><title>Rut</title><chapter n="1"/><w lemma="x">Y ACONTECI\xc3\x93</w>'
        b'  en los <note>n</note>d\xc3\xadas &amp; m\xc3\xa1s.<chapter n="2"/>Y vino.'
    )
    intro, book = zlib.compress(b"<milestone/>"), zlib.compress(markup)
    records = struct.pack("<IIIIII", 0, len(intro), 12, len(intro), len(book), len(markup))
    assert ztext_books(records, intro + book) == {"Ruth": "Y ACONTECIÓ en los días & más.\nY vino.\n"}
    with pytest.raises(ValueError, match="record says 11"):
        ztext_books(struct.pack("<III", 0, len(intro), 11), intro)
    assert osis_text("a &amp;lt; b") == "a &lt; b\n"


def test_tar_members_are_chosen_by_name():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("x/b.txt", "x/a.txt", "x/a.py"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    assert tar_members(buffer.getvalue(), r"\.txt$") == {"x/a.txt": b"x/a.txt", "x/b.txt": b"x/b.txt"}


def test_verse_table_is_cut_into_books():
    table = "{\n 1001001: 0,\n 1001002: 5,\n 2001001: 10,\n}"
    module = f'Bible(X, """One. Two. Th\\x72ee.""", {table}, {{9: 1}})'
    assert verse_table_books(module) == ["One. Two.\n", "Three.\n"]


def test_dictionary_entries_are_prose_in_plain_punctuation():
    text = (
        "00-database\nabout\n\nbug\n n.\n\n    An unwanted property of a program, see {\n    feature}, often called “\n"
        "    a surprise”.\n\n        x = 1;\n\nfeature\n n.\n\n    A good property of a program, or a bug that was "
        "written down.\n"
    )
    assert dictionary_entries(gzip.compress(text.encode())) == {
        "bug": 'bug\n\nAn unwanted property of a program, see feature, often called "a surprise".\n',
        "feature": "feature\n\nA good property of a program, or a bug that was written down.\n",
    }


def test_read_python_leaves_out_tests_tables_and_generated_files(tmp_path):
    code = "def double(x):\n    return 2 * x\n" * 20
    for name, text in {
        "good.py": code,
        "test/test_good.py": code,
        "made.py": "# Generated by a tool.\n" + code,
        "table.py": "T = [" + "123456, " * 200 + "]\n",
        "spanish.py": "# año\n" + code,
        "empty.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert list(read_python(tmp_path)) == ["good.py"]


def test_a_tampered_file_is_refused(tmp_path):
    source = SOURCES["shakespeare"]
    (tmp_path / source.file).write_bytes(b"not the plays")
    with pytest.raises(ValueError, match="sha256"):
        load_documents("shakespeare", "train", cache=tmp_path)


def test_a_missing_file_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="apt-get download dict-jargon=4.4.7-3.1"):
        load_documents("jargon", cache=tmp_path)
    absent = Source("x", "x", "1", "none", "sdist", "x-1.tar.gz", "0")
    monkeypatch.setattr(
        Source, "command", lambda self, python="python": [sys.executable, "-c", "print('no such package')"]
    )
    with pytest.raises(FileNotFoundError, match=r"x-1\.tar\.gz.*\n.*no such package"):
        fetch(absent, tmp_path)


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match="klingon"):
        load_documents("klingon")
    with pytest.raises(ValueError, match="validation"):
        load_documents("stories", "validation")
    with pytest.raises(ValueError, match="never trained on"):
        load_documents("python_docs", "train")
    with pytest.raises(ValueError, match="story_share"):
        chats(0, story_share=2)


def test_python_splits_share_no_file_and_cover_all():
    train, held_out = load_documents("python", "train"), load_documents("python", "heldout")
    assert 0.02 < len(held_out) / len(train) < 0.15 and not set(train) & set(held_out)


def test_generated_splits_share_no_document():
    for domain in ("arithmetic", "stories"):
        assert not set(load_documents(domain, "train")) & set(load_documents(domain, "heldout"))


FILES = [name for name in DOMAINS + PROBES if name in SOURCES and SOURCES[name].file]


@pytest.mark.parametrize("name", FILES)
def test_real_sources_hold_what_the_splits_name(name):
    cached = (default_cache() / SOURCES[name].file).exists()
    if not cached and not os.environ.get("MIXTRAL_EDU_CORPUS"):
        pytest.skip("not downloaded; MIXTRAL_EDU_CORPUS=1 downloads it")
    held_out = load_documents(name, "heldout")
    least = {"shakespeare": 300_000, "spanish": 200_000, "jargon": 50_000, "english_bible": 4_000_000}[name]
    assert sum(map(len, held_out)) > least
    assert not any(re.search(r"</?(w|div|chapter|title)\b|Gutenberg|\ufffd", text[:5000]) for text in held_out)
    if name == "shakespeare":
        assert len(held_out) == 4 and sum("MACBETH" in text[:100] for text in held_out) == 1
        assert is_held_out_work("shakespeare", "macbeth") and not is_held_out_work("shakespeare", "hamlet")
