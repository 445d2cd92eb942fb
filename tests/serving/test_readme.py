import json
import pathlib
import re

from tfgpt.cli.main import build_parser

SERVING = pathlib.Path(__file__).resolve().parents[2] / "serving"
README = (SERVING / "README.md").read_text(encoding="utf-8")


def test_every_file_is_explained():
    table = README.split("\n\n")[2]
    named = re.findall(r"`([\w./]+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:]))
    assert all((SERVING / name).exists() for name in named)
    for path in SERVING.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md":
            relative = path.relative_to(SERVING).as_posix()
            assert any(relative == name or (name.endswith("/") and relative.startswith(name)) for name in named), path


def test_commands_are_ours():
    """Without their comments, tfgpt's lines parse."""
    lines = re.findall(r"^(?:\d\. `)?(tfgpt [^`#\n]*)", README, re.MULTILINE)
    assert len(lines) >= 2
    for line in lines:
        build_parser().parse_args(line.split()[1:])


def test_request_bodies_are_json():
    bodies = [json.loads(body) for body in re.findall(r" -d '([^']*)'", README)]
    openai, *bodies = bodies
    assert set(openai) == {"model", "prompt", "max_tokens", "temperature"}
    assert [body.get("signature_name", "serving_default") for body in bodies] == ["serving_default", "generate_text"]
    assert all("instances" in body for body in bodies)
