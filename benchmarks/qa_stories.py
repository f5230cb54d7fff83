"""A reading-comprehension set with known answers: short stories about people and places with made-up names.

    python benchmarks/qa_stories.py --out stories                   # the files below, in SQuAD's format
    python benchmarks/qa_stories.py --out stories --model runs/qa   # exact match by template, beside the baselines

A story mixes the facts of two schemes. Of each scheme it has two or three instances with other people, places and
things, so that whoever looks at the kind of a word alone has two or three to choose from. About half of the questions
need two facts ("Who got the lamp?" and where that one went). No name of dev or test occurs in what is trained on;
real.json has names of real people and towns, which those are not spelled like. The same seed gives the same bytes.

train, dev, test and real .json have these stories. first.json and short.json lead up to them: one scheme of two
instances, half of the stories with names of one syllable (those of the tests have two), half of the questions with one
fact; in first.json all names are so, and there is one scheme of few words. Names are simple: two syllables, each of
which is one piece of a byte-pair encoding, and no two names of a story have a syllable in common. Facts are told in
few words and one order ("Fivo took saw. Fivo entered Vewa."), and a question has few words of the facts but names.
"""

import argparse
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lmjax.tasks.text_metrics import exact_match


def words(text: str) -> list[str]:
    return text.split()


def syllables(onsets: str, vowels: str) -> list[str]:
    return [onset + vowel for onset in words(onsets) for vowel in vowels]


# a name is one of each. The second ones have fewer vowels and none of the most frequent consonants: so a byte-pair
# encoding makes a piece of nearly every syllable, and not of what stands between two
FIRST_SYLLABLES = syllables("B D F G H J K L M N P R S T V W Z Br Dr Gr Kr Tr Pl Kl", "aeiou")
SECOND_SYLLABLES = syllables("b f g k m p v z w j", "aio")
# a name that begins a text is cut in other pieces than one behind a space
OPENINGS = ("This is the story.", "Here is what we know.", "Listen well.", "It was long ago.")
# of real.json
PEOPLE = words(
    "Alice Boris Carmen Dmitri Elena Fatima George Hannah Igor Julia Kevin Laura Miguel Nadia Oscar "
    "Priya Quentin Rosa Stefan Tanya Ursula Victor Wendy Xavier Yusuf Zoe Andrew Bianca Charles Diana "
    "Edward Felicity Gustav Helen Isaac Jasmine Klaus Leila Martin Nora Olga Pablo Rachel Simon Teresa "
    "Umberto Vanessa Walter Yvonne Zachary"
)
TOWNS = words(
    "Amsterdam Berlin Cairo Dublin Edinburgh Florence Geneva Helsinki Istanbul Jakarta Kyoto Lisbon "
    "Madrid Nairobi Oslo Prague Quito Reykjavik Seville Toronto Utrecht Vienna Warsaw Xiamen Yerevan "
    "Zurich Athens Boston Chicago Delhi"
)
THINGS = words(
    "apple axe bag ball basket bell blanket book bottle bowl brush bucket camera candle carpet chair "
    "clock coat coin compass cup drum fan flute fork guitar hammer hat helmet jar kettle knife ladder "
    "lamp lantern map mirror mug needle painting pan pen pillow plate radio ring rope saw scarf shovel "
    "spoon statue sword table tent torch trumpet umbrella vase violin wallet whistle"
)
JOBS = words(
    "actor baker barber builder butcher carpenter cook dentist doctor driver farmer fisher gardener "
    "guard judge lawyer librarian miner nurse painter pilot plumber poet sailor singer soldier tailor "
    "teacher waiter weaver"
)
RELATIONS = words("aunt boss brother cousin friend neighbour sister teacher uncle")
COLOURS = words("black blue brown golden green grey orange pink purple red silver white yellow")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
FOODS = words(
    "bread butter cabbage carrots cheese cherries chocolate fish garlic grapes ham honey lemons lentils "
    "melons mushrooms noodles nuts olives onions pancakes pears peas plums potatoes rice salad soup "
    "spinach tomatoes"
)
ANIMALS = words("bear camel cat cow dog donkey duck falcon fox frog goat goose hamster horse lizard monkey mouse owl")
ROOMS = words("attic bathroom bedroom cellar corridor garage garden hall kitchen library office pantry studio workshop")
BOXES = words("barrel box cabinet cart chest crate cupboard drawer sack suitcase trunk wardrobe")


# of the stories of train.json, how many have one scheme of two instances
SHORT = 0.5
# of short.json: how many stories have names of one syllable
ONE_SYLLABLE = 0.5
# how many questions about schemes that have both kinds need one fact
ONE_FACT = {"first": 0.5, "short": 0.5, "train": 0.2, "dev": 0.2, "test": 0.2, "real": 0.2}


@dataclass(frozen=True)
class Ask:
    """forms: of the question. answer: the slot, as it stands in the fact of this number. facts: how many one needs."""

    name: str
    forms: tuple[str, ...]
    answer: str
    fact: int
    facts: int


@dataclass(frozen=True)
class Scheme:
    """facts: each in several forms. asks: of them. ordered: one fact comes after the other."""

    name: str
    facts: tuple[tuple[str, ...], ...]
    asks: tuple[Ask, ...]
    ordered: bool = False


def schemes(text: str) -> list[Scheme]:
    """Of qa_templates.txt, whose head says how it is written."""
    found = []
    for block in re.sub(r"#.*\n", "", text).strip().split("\n\n"):
        (name, *then), *lines = (line.split() if number == 0 else line for number, line in enumerate(block.split("\n")))
        facts = [tuple(line[2:].split(" | ")) for line in lines if line.startswith("= ")]
        asks = []
        for line in lines:
            if line.startswith("? "):
                about, *forms = line[2:].split(" | ")
                ask, count, answer, fact = about.split()
                asks.append(Ask(ask, tuple(forms), answer, int(fact) - 1, int(count)))
        found.append(Scheme(name, tuple(facts), tuple(asks), bool(then)))
    return found


SCHEMES = schemes(Path(__file__).with_name("qa_templates.txt").read_text(encoding="utf-8"))
# of first.json: as little text as two facts can have, and no question has another word of a fact than the one that it
# asks about
FIRST = schemes(
    """first
= {a} took {thing}.
= {a} reached {p}.
? what 1 thing 1 | What has {a}?
? where 1 p 2 | Where is {a}?
? owner 1 a 2 | Who has {thing}?
? visitor 1 a 1 | Who is at {p}?
? thing 2 thing 1 | What is at {p}?
? place 2 p 2 | Where is {thing}?
"""
)


def pick(rng: np.random.Generator, found: Sequence):
    """One of them; Generator.choice makes an array of them first, which takes longer than the rest of a story."""
    return found[rng.integers(len(found))]


def part_of(name: str) -> str:
    """Which part a name of two syllables is of, as its hash says: so the parts have none in common."""
    number = hashlib.sha256(name.encode()).digest()[0]
    return "test" if number < 26 else "dev" if number < 52 else "train"


def made_up(part: str, rng: np.random.Generator) -> Callable[[], str]:
    """The names of one story, no two of which have a syllable in common."""
    # a name "To" would be marked where a question begins with that word
    taken = {name.lower() for name in (*PEOPLE, *TOWNS, *DAYS, "to")}
    is_short, used = part == "first" or (part == "short" and rng.random() < ONE_SYLLABLE), set()
    split = part if part in ("dev", "test") else "train"

    def draw() -> str:
        while True:
            first, second = pick(rng, FIRST_SYLLABLES), "" if is_short else pick(rng, SECOND_SYLLABLES)
            name = first + second
            if (is_short or part_of(name) == split) and name.lower() not in taken and not used & {first, second}:
                used.update({first, second} - {""})
                return name

    return draw


def drawers(part: str, rng: np.random.Generator) -> dict[str, Callable[[], str]]:
    """How a slot is filled. People and places have names of one kind, so that their form does not tell them apart."""
    if part == "real":
        person, place = partial(pick, rng, PEOPLE), partial(pick, rng, TOWNS)
    else:
        person = place = made_up(part, rng)
    lists = {
        "thing": THINGS, "job": JOBS, "relation": RELATIONS, "colour": COLOURS, "day": DAYS, "food": FOODS,
        "other": FOODS, "animal": ANIMALS, "room": ROOMS, "box": BOXES,
    }  # fmt: skip
    ranges = {"number": (3, 100), "year": (1100, 2000), "hour": (1, 13)}
    return (
        {"a": person, "b": person, "p": place, "q": place}
        | {slot: partial(pick, rng, found) for slot, found in lists.items()}
        | {
            slot: partial(lambda low, high: str(rng.integers(low, high)), low, high)
            for slot, (low, high) in ranges.items()
        }
    )


def filled(form: str, values: dict[str, str], answer: str = "") -> tuple[str, int]:
    """(the text, where the slot `answer` stands in it)."""
    text, start = "", -1
    for literal, slot in re.findall(r"([^{]*)(?:\{(\w+)\})?", form):
        text += literal
        if slot:
            text = f"{text[:-1]}n " if text.endswith(" a ") and values[slot][0] in "aeiou" else text
            start = len(text) if slot == answer else start
            text += values[slot]
    return text, start


def story(part: str, rng: np.random.Generator) -> tuple[str, list[dict]]:
    """(context, a question about each of its schemes)."""
    draw, used = drawers(part, rng), set()

    def fresh(slot: str) -> str:
        """Nothing occurs twice in a story but relations: only its owner tells one brother from another."""
        while (value := draw[slot]()) in used:
            pass
        return value

    counts = [int(rng.integers(2, 4)), 2]
    if part in ("first", "short") or (part == "train" and rng.random() < SHORT):
        counts = [2]
    lines, asked = [], []
    chosen = FIRST if part == "first" else SCHEMES
    for number, count in zip(rng.choice(len(chosen), len(counts), replace=False), counts, strict=True):
        what = chosen[number]
        slots = sorted({slot for forms in what.facts for slot in re.findall(r"\{(\w+)\}", forms[0])})
        relation, instances = draw["relation"](), []
        for instance in range(count):
            values = {}
            for slot in slots:
                same = slot == "relation" and rng.random() < 0.6
                values[slot] = relation if same else fresh(slot)
                used.update(() if slot == "relation" else (values[slot],))
            instances.append(values)
            # ordered facts keep their order: each fact gets a random time, and those of an instance are sorted
            times = rng.random(len(what.facts))
            for fact, time in enumerate(np.sort(times) if what.ordered else times):
                lines.append((time, number, instance, fact, pick(rng, what.facts[fact])))
        needed = 1 if rng.random() < ONE_FACT[part] else 2
        asks = [ask for ask in what.asks if ask.facts == needed] or what.asks
        asked.append((number, pick(rng, asks), int(rng.integers(count)), instances))
    return told(chosen, sorted(lines), asked, rng)


def told(
    chosen: list[Scheme], lines: list[tuple], asked: list[tuple], rng: np.random.Generator
) -> tuple[str, list[dict]]:
    """The lines one after another, and each question with its answer's place. chosen: the schemes, by number."""
    values = {number: instances for number, _, _, instances in asked}
    context, begins = OPENINGS[2] if chosen is FIRST else pick(rng, OPENINGS), {}
    for _, number, instance, fact, form in lines:
        context += " "
        begins[number, instance, fact] = (len(context), form)
        context += filled(form, values[number][instance])[0]
    questions = []
    for number, ask, instance, _ in asked:
        mine = values[number][instance]
        begin, form = begins[number, instance, ask.fact]
        start = begin + filled(form, mine, ask.answer)[1]
        answer = {"text": mine[ask.answer], "answer_start": start}
        assert context.startswith(answer["text"], start)
        question = filled(pick(rng, ask.forms), mine)[0]
        name = f"{chosen[number].name}-{ask.name}-{ask.facts}"
        questions.append({"id": name, "question": question, "answers": [answer]})
    return context, questions


def squad(part: str, count: int, seed: int) -> dict:
    """So many stories, in SQuAD's format. An id is scheme-question-facts-number."""
    rng = np.random.default_rng([seed, *part.encode()])
    paragraphs = []
    for number in range(count):
        context, questions = story(part, rng)
        for which, question in enumerate(questions):
            question["id"] += f"-{part}{number}{'ab'[which]}"
        paragraphs.append({"context": context, "qas": questions})
    return {"version": "1.1", "data": [{"title": f"stories, {part}, seed {seed}", "paragraphs": paragraphs}]}


def questions_of(dataset: dict) -> Iterator[tuple[str, dict, str]]:
    """(context, question, answer)."""
    for paragraph in dataset["data"][0]["paragraphs"]:
        for question in paragraph["qas"]:
            yield paragraph["context"], question, question["answers"][0]["text"]


def baselines(train: dict, test: dict) -> dict[str, float]:
    """Exact match of those that do not read: the most frequent answer, of all and by the first two words of the
    question; the best place of a word, of a name and of a sentence's last word, chosen on the training stories; and of
    one that takes the last word of the sentence that shares most words with the question."""
    most, by_words = Counter(), defaultdict(Counter)
    for _, question, answer in questions_of(train):
        most[answer] += 1
        by_words[tuple(question["question"].split()[:2])][answer] += 1
    common = most.most_common(1)[0][0]

    def of_question(_, question):
        counts = by_words.get(tuple(question["question"].split()[:2]), most)
        return counts.most_common(1)[0][0]

    def overlap(context, question):
        words = set(question["question"].rstrip("?").split())
        return max(sentences(context), key=lambda s: len(words & set(s.split()))).split()[-1]

    found = {"most frequent answer": exact(test, lambda *_: common), "the same by question": exact(test, of_question)}
    for name, pieces in (("place of a word", words_of), ("place of a name", names_of), ("end of a sentence", ends_of)):
        places = range(-12, 12)
        best = max(places, key=lambda place: exact(train, at(pieces, place), 4000))
        found[f"{name} ({best})"] = exact(test, at(pieces, best))
    return found | {"end of the sentence most like the question": exact(test, overlap)}


def exact(dataset: dict, answer: Callable, limit: int | None = None) -> float:
    scores = [
        exact_match(answer(context, question), [true])
        for (context, question, true), _ in zip(questions_of(dataset), range(limit or 10**9), strict=False)
    ]
    return float(np.mean(scores))


def at(pieces: Callable, place: int) -> Callable:
    def answer(context, _):
        found = pieces(context)
        return found[place] if -len(found) <= place < len(found) else ""

    return answer


def sentences(context: str) -> list[str]:
    return context.rstrip(".").split(". ")


def words_of(context: str) -> list[str]:
    return re.findall(r"\w+", context)


def names_of(context: str) -> list[str]:
    """Words that are in no opening and no fact of any scheme and begin with a capital."""
    plain = set(words_of(" ".join([*OPENINGS, *(form for one in SCHEMES for forms in one.facts for form in forms)])))
    return [word for word in words_of(context) if word[0].isupper() and word not in plain]


def ends_of(context: str) -> list[str]:
    return [sentence.split()[-1] for sentence in sentences(context)]


def by_template(model: str, file: Path) -> dict[str, tuple[int, float]]:
    """(questions, exact match) by the names that ids begin with, and of all by the number of facts."""
    from lmjax.data.records import Squad
    from lmjax.evaluate.predictors import predictor
    from lmjax.loaded import load_model, needed_tokenizer

    loaded = load_model(model, None)
    records = list(Squad(path=str(file)).records())
    predictions = predictor(loaded.experiment, needed_tokenizer(loaded))(loaded.params, records)
    scores = defaultdict(list)
    for record, prediction in zip(records, predictions, strict=True):
        right = exact_match(prediction["answer"], [record.fields["answers"][0]["text"]])
        scheme_name, ask, facts, _ = record.fields["id"].split("-")
        for group in (f"{scheme_name}-{ask}", f"{facts} fact(s)", "all"):
            scores[group].append(right)
    return {group: (len(right), float(np.mean(right))) for group, right in sorted(scores.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a directory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=160_000, help="stories of train.json")
    parser.add_argument("--short", type=int, default=60_000, help="the same, of first.json and of short.json")
    parser.add_argument("--test", type=int, default=1000, help="the same, of each of the other parts")
    parser.add_argument("--model", help="a run: scores it by template")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    counts = {"first": given.short, "short": given.short, "train": given.train}
    counts |= dict.fromkeys(("dev", "test", "real"), given.test)
    made = {part: squad(part, count, given.seed) for part, count in counts.items()}
    for part, dataset in made.items():
        (given.out / f"{part}.json").write_text(json.dumps(dataset) + "\n")
    for part in ("test", "real"):
        two = np.mean([question["id"].split("-")[2] == "2" for _, question, _ in questions_of(made[part])])
        print(f"{part}: {2 * given.test} questions, {two:.0%} need two facts; exact match of baselines:")
        for name, share in baselines(made["train"], made[part]).items():
            print(f"  {share:.3f}  {name}")
        if given.model:
            print(f"{given.model}:")
            for name, (count, share) in by_template(given.model, given.out / f"{part}.json").items():
                print(f"  {share:.3f}  {name} ({count})")


if __name__ == "__main__":
    main()
