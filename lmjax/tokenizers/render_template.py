"""Render chat templates, as a process of its own with limits: a line of JSON on standard input for each, a line of JSON
on standard output with the text or why there is none."""

import datetime
import functools
import json
import resource
import sys

MEMORY = 1 << 30
CPU_SECONDS = 10


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _json(value, indent=None, ensure_ascii=False, separators=None, sort_keys=False) -> str:
    """Of a template's `tojson`: without the escapes for HTML that Jinja's own has."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)


def _generation():
    """The extension of transformers for {% generation %}, around what the assistant says; it is written as it is."""
    import jinja2.ext

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller) -> str:
            return caller()

    return Generation


def main() -> None:
    """Until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # the settings that transformers renders with
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refuse
    parsed = functools.lru_cache(maxsize=4)(environment.from_string)
    for line in sys.stdin.buffer:
        question = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        try:
            date = question["date"]
            now = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
            variables = {"tools": None, "documents": None, "strftime_now": now.strftime} | question["variables"]
            answer = {"text": parsed(question["template"]).render(**variables)}
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError, KeyError) as error:
            answer = {"refused": f"{type(error).__name__}: {error}"}
        # escapes keep the output ASCII, whatever the terminal's encoding is
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
