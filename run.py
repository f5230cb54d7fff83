"""The command line: a verb names a function, which is imported when the verb is used."""

import argparse
import sys
from importlib import import_module

VERBS = {
    "train": "train a model, or go on with a run (the default)",
    "data": "show what the model sees: decoded windows and the tokenizer's round trip",
    "evaluate": "score a text: loss, perplexity, bits per byte; or a suite of examples",
    "predict": "what a model of labels, answers or translations makes of every record of a file",
    "generate": "continue a prompt",
    "export": "write a run as a Hugging Face directory, which transformers loads",
    "plan": "say what a run needs: memory, time, money, on devices that need not be here",
    "inspect": "what goes on inside a model while it reads a text, as one page",
    "verify": "compare two models layer by layer and name the first site where they part",
}

FROM_MODEL = ("evaluate", "predict", "generate", "export", "inspect", "verify")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        sys.stderr.write(f"error: {message} (see python run.py {self.prog.split()[-1]} --help)\n")
        raise SystemExit(2)


def parser_for(verb: str) -> Parser:
    parser = Parser(prog=f"run.py {verb}", description=VERBS[verb], allow_abbrev=False)
    add = parser.add_argument
    if verb in ("train", "data", "plan"):
        parser.epilog = "Any field of the experiment can follow, such as --steps=200 --optimizer.b2=0.95 --mesh.fsdp=4"
        needed = verb != "plan"
        add("--config", required=needed, metavar="FILE", help="a Python file with `experiment = Experiment(...)`")
    if verb == "train":
        add("--run", metavar="DIR", help="the run's directory, or a URL such as gs://bucket/run (default: runs/NAME)")
        add("--accept-changes", action="store_true", help="go on with a run whose experiment or text has changed")
        host_options(parser)
    if verb == "data":
        add("--step", type=int, default=1, metavar="N", help="the step whose batch is shown (default: 1)")
        add("--windows", type=int, default=3, metavar="N", help="how many windows (default: 3)")
    if verb == "plan":
        add("--topology", metavar="KIND:SHAPE", help="v5p:8x8x8, h100:8, here (default: the experiment's, or here)")
        add("--price", type=float, metavar="P", help="of a device and an hour")
        add("--search", action="store_true", help="find the largest batch that fits")
        add("--remedies", action="store_true", help="compile what could save memory, even if the step fits")
        add("--compute", type=float, metavar="FLOPS", help="instead of --config: the best model for that much compute")
        add("--json", metavar="FILE", help="write the figures here too")
    if verb in FROM_MODEL:
        kinds = "a run, a Hugging Face directory, or PEFT's of a LoRA; a URL of one, or hf:NAME"
        add("--model", required=True, metavar="PATH", help=kinds)
        add("--step", default=None, metavar="N|best", help="which checkpoint (default: the newest good one)")
    if verb in ("evaluate", "predict", "generate"):
        kinds = ("float32", "bfloat16", "int8")
        add("--weights", default="float32", choices=kinds, help="fewer bytes to read a token (default: float32)")
    if verb == "evaluate":
        evaluate_options(add)
        suite_options(parser)
    if verb == "predict":
        search_options(add)
        temperature_options(add)
        add("--input", required=True, metavar="FILE", help="JSON lines, a table, or a text of which each line is read")
        add("--output", required=True, metavar="FILE", help="JSON lines; FILE.partial until all records are done")
    if verb == "export":
        add("--to", required=True, metavar="DIR", help="a directory that does not exist yet, or is empty")
        add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="default: float32")
        add("--adapter", action="store_true", help="of a run with an adapter, that alone, as PEFT reads it")
        add("--base", metavar="NAME", help="with --adapter: where PEFT finds the base (default: init_from)")
    if verb == "inspect":
        inspect_options(add)
    if verb == "verify":
        add("--against", required=True, metavar="PATH", help="as --model, or transformers:PATH: the original")
        add("--text", metavar="FILE", help="what both read (default: 512 tokens drawn at random)")
        add("--tolerance", type=float, default=1e-4, metavar="X", help="of the largest value at a site (default: 1e-4)")
    if verb == "generate":
        add_writing(add)
    return parser


def evaluate_options(add) -> None:
    """Of a text, and of records."""
    search_options(add)
    add("--text", metavar="FILE", help="plain text, or JSON lines with a `text` (default: a run's held-out text)")
    add("--json", metavar="FILE", help="write the figures here too")
    add("--context", type=int, metavar="N", help="tokens of a window (default: the model's context)")
    what = "of labels and choices: fit one temperature on a file, or a share of the data, and keep it with the run"
    add("--fit_temperature", metavar="FILE|SHARE", help=what)
    temperature_options(add)


def temperature_options(add) -> None:
    """Of a run that keeps one."""
    add("--uncalibrated", action="store_const", const=True, help="leave out the temperature that the run keeps")


def search_options(add) -> None:
    """Of texts that a model writes for records."""
    add("--beams", type=int, metavar="K", help="of texts that are written: beams (default: the experiment's)")
    add("--length_penalty", type=float, metavar="A", help="log p / length^A (default: the experiment's)")


def suite_options(parser: Parser) -> None:
    group = parser.add_argument_group("a suite of examples", "README says what each reads and takes.")
    add = group.add_argument
    names = "multiple-choice, classification, minimal-pairs, perplexity, generation, memorization, contamination, "
    names += "lm-eval:TASK, lm-eval:FILE.yaml"
    fair = "crows-pairs, winobias, stereoset, bbq, word-association, counterfactual, toxicity"
    add("--suite", metavar="NAME", help=f"{names}; {fair}; several with commas, as many files in --data")
    add("--data", metavar="FILE", help="the examples of a suite; records, for a model of labels (default: a run's own)")
    add("--limit", type=int, metavar="N", help="only the first N examples (of each paradigm of minimal pairs)")
    add("--shots", type=int, metavar="N", help="solved examples before each one (default: 0)")
    add("--shots_from", metavar="FILE", help="where they are drawn from (default: the other examples)")
    add("--seed", type=int, metavar="S", help="of shots, of what is fitted on, and of intervals (default: 0)")
    add("--template", metavar="TEXT", help="what is written of an example, with its {field}s; \\n is a new line")
    add("--labels", metavar="A=WORD,B=WORD", help="of a classification: the word that stands for each label")
    add(
        "--max_new_tokens",
        type=int,
        metavar="N",
        help="of texts that are written (default: 64; toxicity: 20, memorization: 50)",
    )
    add("--stop", action="append", metavar="TEXT", help="where such a text ends, several times (default: \\n\\n)")
    add("--include", metavar="DIR", help="tasks of your own for lm-eval:TASK")
    add("--vectors", metavar="KIND", help="of word-association: embeddings (default), mean, first, last")
    add("--groups", metavar="FILE", help="of counterfactual: lines of two terms that are exchanged, such as he,she")
    add("--words", metavar="FILE", help="of toxicity: words and phrases that are toxic, one a line")
    add("--classifier", metavar="PATH", help="of toxicity: a model of labels, with --toxic_label")
    add("--toxic_label", metavar="LABEL", help="which of its labels is toxic")
    add("--report", metavar="FILE.html", help="a page of what the suites found, with plots")
    add("--earlier", action="append", metavar="FILE", help="with --report: what --json of an earlier command wrote")
    add("--samples", type=int, metavar="N", help="of generation: texts that vote; of toxicity: of each prompt (25)")
    add("--sample_temperature", type=float, metavar="T", help="with --samples (default: 0.7)")
    add("--answer", metavar="REGEX", help="with --samples: what of a text votes: its last match's group, or all of it")
    add("--by", metavar="FIELD", help="of perplexity: apart by a field of the lines, or file; a run's own text: source")
    add("--prompt_tokens", type=int, metavar="P", help="of memorization: what is given (default: 50)")
    add("--ngram", type=int, metavar="N", help="of contamination: tokens that both have in a row (default: 13)")


def host_options(parser: Parser) -> None:
    hosts = parser.add_argument_group("several processes", "Slurm, Open MPI and TPU pods are found without these.")
    add = hosts.add_argument
    add("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached by all")
    add("--processes", type=int, metavar="N", help="how many processes there are")
    add("--process", type=int, metavar="I", help="which one this is, from 0")
    add("--join-timeout", type=int, default=300, metavar="S", help="seconds until all have come (default: 300)")
    add("--peer-timeout", type=int, default=60, metavar="S", help="until a silent one counts as dead (default: 60)")


def inspect_options(add) -> None:
    """Of a text that is looked into."""
    add("--prompt", required=True, metavar="TEXT", help="what the model reads; of an encoder-decoder, the source")
    add("--to", required=True, metavar="FILE", help="the page, such as report.html")
    add("--target", metavar="TEXT", help="of an encoder-decoder: what it is to say (default: what it writes)")
    add("--token", type=int, metavar="N", help="the token to explain, from 0 or the end (default: what is next)")
    add("--top", type=int, default=5, metavar="K", help="alternatives for each place (default: 5)")
    add("--integrated", type=int, default=0, metavar="N", help="explain by integrated gradients of N steps")


def add_writing(add) -> None:
    """The options of `generate`."""
    add("--prompt", action="append", metavar="TEXT", help="may be given several times; an encoder-decoder's source")
    add("--chat", action="store_true", help="each prompt is a message, in the model's own chat template")
    add("--max_new_tokens", type=int, default=100, metavar="N")
    add("--temperature", type=float, default=0.0, metavar="T", help="0, the default: the most probable token")
    add("--top_k", type=int, default=None, metavar="K")
    add("--top_p", type=float, default=1.0, metavar="P")
    add("--min_p", type=float, default=0.0, metavar="P")
    add("--seed", type=int, default=0, metavar="S")
    add("--show", choices=("confidence",), help="each token's probability: colours on a terminal, else numbers")
    add("--beams", type=int, default=1, metavar="K", help="beam search among K texts (default: 1, none)")
    add("--length_penalty", type=float, default=1.0, metavar="A", help="log p / length^A (default: 1)")


def overview() -> str:
    verbs = "\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())
    return (
        "usage: python run.py [VERB] --config FILE | --model PATH [options]\n\n"
        f"{verbs}\n\n"
        "python run.py --config experiments/small.py trains a small model on this machine.\n"
        "python run.py VERB --help tells a verb's options.\n"
    )


def main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview(), end="")
        return 0
    verb = words.pop(0) if not words[0].startswith("-") else "train"
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        sys.stderr.write(f"error: no verb {verb!r}; {f'did you mean {near[0]}?' if near else 'see run.py --help'}\n")
        return 2
    options, others = parser_for(verb).parse_known_args(words)
    if others and verb in FROM_MODEL:
        parser_for(verb).error(f"unrecognised {' '.join(others)}")
    try:
        return import_module("lmjax.commands").run(verb, options, others)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
