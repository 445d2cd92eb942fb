"""Many clients at once against an OpenAI-compatible server: python serving/load_test.py http://127.0.0.1:8501 MODEL

Each client sends one streamed completion after another, of prompts of random lengths, and measures the time to the
first piece of text and from piece to piece; a piece is a token, or several where one alone is no whole character.
Prints percentiles, the throughput and the errors; exits with 1 if any request failed that should not have.

    --compare first asks for every prompt alone, and then counts the texts that differ under load (greedy sampling)
    --leave 0.1 --wrong 0.1 let a tenth of the clients hang up halfway, and a tenth send what is no request

Bounded: at most 256 clients and an hour, and this machine alone unless --remote is given.
"""

import argparse
import collections
import http.client
import ipaddress
import json
import pathlib
import random
import socket
import sys
import threading
import time
import urllib.parse

WRONG = (
    b"",
    b"{",
    b"[]",
    b'{"model": 3}',
    b'{"model": "no such model", "prompt": "a"}',
    b'{"max_tokens": -1, "prompt": "a"}',
    b'{"prompt": [-1]}',
)


class Failed(Exception):
    """A request that was not answered as it should be."""


def main():
    """Parses the command line, runs the clients and reports."""
    arguments = parse_arguments()
    load = Load(arguments)
    expected = {}
    if arguments.compare:
        alone = load.run(clients=1, count=arguments.prompts, behaved=True)
        expected = alone.texts
        print(f"{len(expected)} prompts alone: {alone.new_tokens / alone.seconds:.1f} tokens/s", flush=True)
    result = load.run(arguments.clients, arguments.requests, arguments.seconds)
    report = describe(result, arguments.clients)
    if arguments.compare:
        report["compared"] = sum(prompt in expected for prompt in result.texts)
        different = [prompt for prompt, text in result.texts.items() if expected.get(prompt, text) != text]
        report["different_texts"] = len(different) + result.changed
        report["alone_tokens_per_second"] = round(alone.new_tokens / alone.seconds, 1)
    for name, value in report.items():
        print(f"{name:32s} {value}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if result.failures or report.get("different_texts") else 0


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    parser.add_argument("model", help="its name there")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, help="in all; by default four a client")
    parser.add_argument("--seconds", type=float, help="go on for so long instead")
    parser.add_argument("--characters", default="16-256", help="of a prompt: from-to")
    parser.add_argument("--prompts", type=int, default=64, help="how many there are")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--text", help="a file that prompts are cut from; by default this script")
    parser.add_argument("--token", default="none", help="of the Authorization header")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--leave", type=float, default=0.0)
    parser.add_argument("--wrong", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the figures to this file, too")
    parser.add_argument("--remote", action="store_true", help="allow another machine than this one")
    arguments = parser.parse_args()
    if not 1 <= arguments.clients <= 256:
        parser.error(f"clients is {arguments.clients}, expected 1 to 256")
    if arguments.seconds is not None and not 0 < arguments.seconds <= 3600:
        parser.error(f"seconds is {arguments.seconds}, expected at most 3600")
    if arguments.requests is None and arguments.seconds is None:
        arguments.requests = 4 * arguments.clients
    host = urllib.parse.urlsplit(arguments.url).hostname
    if host is None:
        parser.error(f"url is {arguments.url!r}, expected http://HOST:PORT")
    if not arguments.remote and not is_this_machine(host):
        parser.error(f"url is {arguments.url}, expected this machine, or --remote")
    return arguments


def is_this_machine(host):
    """Whether a name is a loopback address."""
    try:
        return all(ipaddress.ip_address(address[4][0]).is_loopback for address in socket.getaddrinfo(host, None))
    except OSError:
        return False


class Result:
    """What the clients saw."""

    def __init__(self):
        self.lock = threading.Lock()
        self.first, self.between, self.whole = [], [], []
        self.new_tokens = self.prompt_tokens = self.seconds = self.changed = 0
        self.texts, self.outcomes, self.failures = {}, collections.Counter(), []


class Load:
    """The prompts, and the clients that send them.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments):
        self.arguments = arguments
        generator = random.Random(arguments.seed)
        text = pathlib.Path(arguments.text or __file__).read_text(encoding="utf-8", errors="ignore")
        shortest, longest = map(int, arguments.characters.split("-"))
        self.prompts = []
        for _ in range(arguments.prompts):
            length = generator.randint(shortest, longest)
            start = generator.randrange(max(1, len(text) - length))
            self.prompts.append(text[start : start + length])

    def run(self, clients, count=None, seconds=None, behaved=False):
        """Runs clients until `count` requests were sent, or `seconds` are over; `behaved` ones do not leave or err."""
        result, numbers = Result(), iter(range(count if count is not None else sys.maxsize))
        start = time.monotonic()
        until = start + seconds if seconds is not None else float("inf")

        def work(client):
            generator = random.Random(f"{self.arguments.seed}-{client}")
            connection = None
            while time.monotonic() < until:
                with result.lock:
                    number = next(numbers, None)
                if number is None:
                    return
                try:
                    connection = connection or self.connect()
                    chance = 1.0 if behaved else generator.random()
                    kept = self.ask(connection, self.prompts[number % len(self.prompts)], chance, generator, result)
                except (OSError, http.client.HTTPException, ValueError, KeyError, Failed) as error:
                    kept = False
                    with result.lock:
                        result.outcomes["failed"] += 1
                        result.failures.append(f"{type(error).__name__}: {error}")
                if not kept and connection is not None:
                    connection.close()
                    connection = None

        threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        result.seconds = time.monotonic() - start
        return result

    def connect(self):
        """A connection to the server."""
        url = urllib.parse.urlsplit(self.arguments.url)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        return kind(url.hostname, url.port, timeout=600)

    def ask(self, connection, prompt, chance, generator, result):
        """Sends one request, of what kind `chance` decides; gives whether the connection is still of use."""
        leaves = chance < self.arguments.leave
        if not leaves and chance < self.arguments.leave + self.arguments.wrong:
            return self.ask_wrongly(connection, generator.choice(WRONG), result)
        body = {
            "model": self.arguments.model,
            "prompt": prompt,
            "max_tokens": self.arguments.new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start = last = time.monotonic()
        self.post(connection, json.dumps(body).encode())
        response = connection.getresponse()
        if response.status == 429:
            response.read()
            with result.lock:
                result.outcomes["told to wait"] += 1
            time.sleep(min(1.0, float(response.headers.get("retry-after", 1))))
            return True
        if response.status != 200:
            raise Failed(f"status {response.status}: {response.read(300)}")
        gaps, text, usage, first, ended = [], "", None, None, False
        stop_after = generator.randint(1, self.arguments.new_tokens) if leaves else None
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                ended = True
                continue
            piece = json.loads(line[6:])
            if "error" in piece:
                raise Failed(piece["error"]["message"])
            usage = piece.get("usage") or usage
            if piece["choices"] and piece["choices"][0]["text"]:
                now = time.monotonic()
                if first is None:
                    first = now - start
                else:
                    gaps.append(now - last)
                last = now
                text += piece["choices"][0]["text"]
            if stop_after is not None and len(gaps) >= stop_after:
                with result.lock:
                    result.outcomes["left"] += 1
                return False
        if not ended:
            raise Failed("the stream ended without [DONE]")
        self.record(result, prompt, text, first, gaps, time.monotonic() - start, usage)
        return True

    @staticmethod
    def record(result, prompt, text, first, gaps, seconds, usage):
        """Adds a whole answer."""
        with result.lock:
            result.outcomes["answered"] += 1
            result.whole.append(seconds)
            result.between += gaps
            if first is not None:
                result.first.append(first)
            if usage:
                result.new_tokens += usage["completion_tokens"]
                result.prompt_tokens += usage["prompt_tokens"]
            else:  # of servers that do not count
                result.new_tokens += len(gaps) + 1
            if result.texts.setdefault(prompt, text) != text:
                result.changed += 1

    def ask_wrongly(self, connection, body, result):
        """Sends what is no request: a status that says so is right."""
        self.post(connection, body)
        response = connection.getresponse()
        response.read()
        if not 400 <= response.status < 500:
            raise Failed(f"status {response.status} for {body!r}")
        with result.lock:
            result.outcomes["refused"] += 1
        return True

    def post(self, connection, body):
        """Sends a body."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.arguments.token}"}
        connection.request("POST", "/v1/completions", body, headers)


def describe(result, clients):
    """The figures of a run."""
    rows = {"clients": clients, "seconds": round(result.seconds, 2), **result.outcomes}
    rows["prompt_tokens"], rows["new_tokens"] = result.prompt_tokens, result.new_tokens
    rows["tokens_per_second"] = round(result.new_tokens / result.seconds, 1)
    for name, values in (
        ("time_to_first_token_ms", result.first),
        ("time_between_tokens_ms", result.between),
        ("whole_answer_ms", result.whole),
    ):
        rows[name] = " ".join(f"p{part} {1000 * percentile(values, part):.1f}" for part in (50, 95, 99))
    if result.failures:
        rows["first_failure"] = result.failures[0]
    return rows


def percentile(values, part):
    """The value that `part` percent of all do not exceed.

    Example:
        >>> percentile([3, 1, 2, 4], 50), percentile([3, 1, 2, 4], 99)
        (2, 4)
    """
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * part // 100) - 1)] if ordered else float("nan")


if __name__ == "__main__":
    sys.exit(main())
