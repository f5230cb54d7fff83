"""Render one chat template, as a process of its own: JSON on standard input, JSON on standard output, and limits."""

import datetime
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


def main() -> int:
    """0 and the text; 3 and the reason where the template raises."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    question = json.loads(sys.stdin.buffer.read().decode("utf-8"))
    # the settings that transformers renders with
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    try:
        text = environment.from_string(question["template"]).render(**question["variables"])
    except (jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError, KeyError) as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    # escapes keep the output ASCII, whatever the terminal's encoding is
    print(json.dumps(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
