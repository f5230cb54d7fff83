"""Tasks of lm-eval in YAML over local JSON, one for each kind of request."""

import json
from pathlib import Path

from tests import tiny
from tests.evaluate.models import write_lines

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {data}
  cache_dir: {cache}
test_split: train
fewshot_split: train
output_type: {kind}
{rest}
"""
WAYS = {
    "local_choices": ("multiple_choice", """\
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
"""),
    "local_text": ("loglikelihood_rolling", """\
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""),
    "local_writing": ("generate_until", """\
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["e", " a"]
  max_gen_toks: 7
  do_sample: false
metric_list:
  - metric: exact_match
  - metric: chrf
"""),
}  # fmt: skip
UNSAFE = (
    "unsafe_code: true\nmetric_list:\n  - metric: acc\ndoc_to_text: a\ndoc_to_target: answer\ndoc_to_choice: choices\n"
)


def write(folder: Path, count: int = 12) -> Path:
    """The folder of the tasks, and its data.jsonl."""
    words = tiny.text(4000).split()
    lines = []
    for i in range(count):
        part = words[20 * i : 20 * i + 20]
        # contexts with and without a space at the end, empty ones, and one longer than a short context
        question = " ".join(part[: i % 7]) + (" " if i % 7 and i % 3 == 1 else "") + ("é " * 40 if i == 5 else "")
        choices = [" ".join(part[7:9]), "".join(part[9:11]) + "ü", part[12]]
        lines.append({"question": question, "choices": choices, "answer": i % 3, "text": " ".join(part[: i + 1])})
    data = write_lines(folder / "data.jsonl", *lines)
    for name, (kind, rest) in (WAYS | {"local_unsafe": ("multiple_choice", UNSAFE)}).items():
        task = TASK.format(name=name, data=json.dumps(str(data)), cache=folder / "cache", kind=kind, rest=rest)
        (folder / f"{name}.yaml").write_text(task)
    return folder
