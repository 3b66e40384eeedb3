"""Many image requests over several slots of llama-server: answers, memory, slots, requests per second.

    python bench/server_soak.py [--server build/bin/llama-server] [--requests 10000] [--slots 8]

Pages and cuttings of pages, asked about with several keeps, methods and windows, streamed and not; some with a second
question behind the first; some cut off by the client before or in the middle of the answer, some by killing the client
(SIGKILL); some with broken pictures or with fields that are to be refused. Right is what a server with one slot, which
has seen nothing but that conversation, answers, or a 400; the text model is run in F32, so that batching cannot change
an answer. A second question may find its picture compressed for the first one, or has it compressed anew for both when
another conversation took the slot in between: both answers are right. Linux: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from running_server import CHAT, MODELS, ROOT, Server, running

MAX_TOKENS = 6
FLAT = 1.05  # memory after the warm-up may grow by this

# What a request says about compression.
CHOICES: list[dict[str, Any]] = [
    {"aircache_keep": 1.0},
    {"aircache_keep": 0.05},
    {"aircache_keep": 0.1, "aircache_window": "elite:0.5:last"},
    {"aircache_keep": 0.3, "aircache_method": "snapkv"},
    {"aircache_keep": 0.2, "aircache_method": "vlcache"},
    {"aircache_keep": 0.1, "aircache_window": "visual:8", "aircache_allocation": "pyramid"},
    {"aircache_keep": 0.5, "aircache_method": "random"},
]
REFUSED: list[dict[str, Any]] = [
    {"aircache_keep": 0.0},
    {"aircache_keep": 0.1, "aircache_window": "visual:0"},
    {"aircache_keep": 0.1, "aircache_window": "all"},  # needs a server of one slot
    {"aircache_keep": 0.1, "aircache_allocation": "none"},
    {"aircache_keep": "0.1"},
]

# Kinds of requests and their shares.
KINDS = {
    "plain": 30,
    "streamed": 24,
    "follow-up": 16,  # both questions count as one request
    "cancelled": 8,  # in the middle of the answer
    "cut off": 8,  # before the answer
    "killed": 2,  # the client's process, in the middle of the answer
    "broken picture": 6,
    "refused": 6,
}

# A client that reads the first piece of an answer, says so, and waits to be killed.
CLIENT = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.stdin.buffer.read())
connection.recv(1)
print(flush=True)
connection.recv(1 << 30, socket.MSG_WAITALL)
"""


class Job(NamedTuple):
    """One request."""

    kind: str
    picture: int
    question: int
    choice: int


class Right(NamedTuple):
    """What is right for a conversation."""

    first: str
    second: str  # behind the first, in the same slot
    anew: str  # the same messages in an empty slot


def pictures(small: int) -> list[bytes]:
    """PNG files: the sample pages, and as many cuttings of each."""
    res = []
    for path in sorted((MODELS / "samples").glob("*.png")):
        res.append(path.read_bytes())
        page = Image.open(path).convert("RGB")
        for i in range(small):
            corner = (28 * (2 + 3 * i) % (page.width - 224), 28 * (1 + 4 * i) % (page.height - 112))
            cutting = page.crop((*corner, corner[0] + 224, corner[1] + 112))
            data = io.BytesIO()
            cutting.save(data, "PNG")
            res.append(data.getvalue())
    return res


def questions() -> list[str]:
    """Of the sample pages."""
    lines = (MODELS / "samples" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def user(question: str, picture: bytes | None = None) -> dict[str, Any]:
    """A user's message."""
    if picture is None:
        return {"role": "user", "content": question}
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}}
    return {"role": "user", "content": [image, {"type": "text", "text": question}]}


class Soak:
    """The requests and what is right.

    Args:
        small: cuttings of each page.
        pages: share of the requests that are about a whole page; they take a hundred times the work of a cutting.
    """

    def __init__(self, small: int = 4, pages: float = 0.03) -> None:
        self.pictures = pictures(small)
        self.questions = questions()
        self.whole = range(0, len(self.pictures), small + 1)
        self.cut = [i for i in range(len(self.pictures)) if i not in self.whole]
        self.page_share = pages
        self.expected: dict[Job, Right] = {}
        self.lock = threading.Lock()

    def job(self, dice: random.Random) -> Job:
        """Any request."""
        kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
        picture = dice.choice(self.whole if dice.random() < self.page_share else self.cut)
        # two questions a picture: there are to be far fewer conversations than requests
        question = (picture + dice.randrange(2)) % len(self.questions)
        return Job(kind, picture, question, dice.randrange(len(REFUSED if kind == "refused" else CHOICES)))

    def body(self, job: Job, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """A request's."""
        choice = (REFUSED if job.kind == "refused" else CHOICES)[job.choice]
        return {"messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS, **choice}

    def first(self, job: Job) -> list[dict[str, Any]]:
        """Messages of the first turn."""
        return [user(self.questions[job.question], self.pictures[job.picture])]

    def second(self, job: Job, answer: str) -> list[dict[str, Any]]:
        """Messages of the second turn."""
        later = user(self.questions[(job.question + 1) % len(self.questions)])
        return [*self.first(job), {"role": "assistant", "content": answer}, later]

    def right(self, job: Job) -> Right:
        """Answers of the server that has seen nothing else."""
        return self.expected[job._replace(kind="")]

    def learn(self, server: Server, jobs: list[Job]) -> None:
        """Asks a server of one slot what is right for all jobs."""
        forget = {"messages": [user("Forget it.")], "max_tokens": 1}  # the slot's picture is gone then
        for job in sorted({job._replace(kind="") for job in jobs if job.kind != "refused"}):
            server.answer(forget)
            first = self.text(server, self.body(job, self.first(job)))
            later = self.body(job, self.second(job, first))
            second = self.text(server, later)
            server.answer(forget)
            self.expected[job] = Right(first, second, self.text(server, later))

    def run(self, server: Server, job: Job) -> str:
        """Sends one request; returns how it ended."""
        body = self.body(job, self.first(job))
        if job.kind == "refused":
            status, _ = server.answer(body)
            return "refused" if status == 400 else f"wrong: {status} for {REFUSED[job.choice]}"
        if job.kind == "broken picture":
            file = self.pictures[job.picture]
            broken = file[: len(file) // 2] if job.question % 2 else b"no picture" + file
            status, _ = server.answer(self.body(job, [user("?", broken)]))
            return "refused" if status == 400 else f"wrong: {status} for a broken picture"
        if job.kind == "cut off":
            with server.send(body):
                return "cancelled"
        if job.kind == "cancelled":
            server.streamed(body, most=2)
            return "cancelled"
        if job.kind == "killed":
            self.kill_client(server, body)
            return "killed"
        right = self.right(job)
        got = server.streamed(body) if job.kind == "streamed" else self.text(server, body)
        if got != right.first:
            return f"wrong: {job}: {got!r}, not {right.first!r}"
        if job.kind == "follow-up":
            got = self.text(server, self.body(job, self.second(job, right.first)))
            if got not in (right.second, right.anew):
                return f"wrong: second answer of {job}: {got!r}, not {right.second!r} or {right.anew!r}"
        return "right"

    @staticmethod
    def text(server: Server, body: dict[str, Any]) -> str:
        """The answer, or the error."""
        status, text = server.answer(body)
        return text if status == 200 else f"error {status}: {text}"

    @staticmethod
    def kill_client(server: Server, body: dict[str, Any]) -> None:
        """Starts a process that asks, and kills it once the answer has begun."""
        content = json.dumps({**body, "stream": True}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        command = [sys.executable, "-I", "-S", "-c", CLIENT, str(server.port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin and client.stdout
            client.stdin.write(f"{head}{len(content)}\r\n\r\n".encode() + content)
            client.stdin.close()
            client.stdout.readline()
            client.kill()


def f32_model(server: Path, folder: Path) -> Path:
    """The bundled text model in F32."""
    path = folder / "f32.gguf"
    source = MODELS / "pages-vl-Q8_0.gguf"
    command = [server.parent / "llama-quantize", "--allow-requantize", source, path, "F32"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return path


def soak(
    server: Path, model: Path, requests: int, warm_up: int, slots: int, seed: int = 1, small: int = 4
) -> dict[str, Any]:
    """Runs it all.

    Args:
        server: llama-server.
        model: the text model, in F32.
        requests: how many.
        warm_up: so many of them come before memory is measured.
        slots: of the server that is tried.
        seed: of what is asked.
        small: cuttings of each page.

    Returns:
        Counts of outcomes, wrong ones in words, slots still busy, memory, requests per second.
    """
    work = Soak(small)
    dice = random.Random(seed)
    jobs = [work.job(dice) for _ in range(requests)]
    memory: list[float] = []

    with running(server, model, 1, cache_mib=0) as single:  # which forgets: `anew` is to be without a compressed prompt
        work.learn(single, jobs)

    with running(server, model, slots) as many, ThreadPoolExecutor(slots + 2) as pool:

        def measured(job: Job) -> str:
            outcome = work.run(many, job)
            with work.lock:
                memory.append(many.rss_mib())
            return outcome

        started = time.monotonic()
        ended = Counter(pool.map(measured, jobs))
        seconds = time.monotonic() - started
        busy = many.busy_slots()
        alive = many.process.poll() is None

    wrong = {outcome: n for outcome, n in ended.items() if outcome.startswith("wrong")}
    part = max(1, len(memory) // 10)
    tenths = [round(statistics.median(memory[i : i + part]), 1) for i in range(0, 10 * part, part) if memory[i:]]
    early = statistics.median(memory[warm_up : warm_up + part] or memory)
    return {
        "requests": requests,
        "warm_up": warm_up,
        "slots": slots,
        "conversations": len(work.expected),
        "different_answers": len({answer for right in work.expected.values() for answer in right}),
        "kinds": dict(Counter(job.kind for job in jobs)),
        **{outcome: n for outcome, n in ended.items() if outcome not in wrong},
        "wrong": sum(wrong.values()),
        "first_wrong": sorted(wrong)[:5],
        "slots_still_busy": busy,
        "server_alive": alive,
        "rss_mib_after_the_warm_up": round(early, 1),
        "rss_mib_at_the_end": tenths[-1],
        "rss_mib_by_tenth": tenths,
        "seconds": round(seconds, 1),
        "requests_per_second": round(requests / seconds, 2),
    }


def main() -> int:
    """Prints a JSON object; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, default=ROOT / "pyaircache" / "bin" / "llama-server")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, help="how many come before memory is measured; default: three tenths")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        model = f32_model(args.server, Path(folder))
        warm_up = args.requests * 3 // 10 if args.warm_up is None else args.warm_up
        result = soak(args.server, model, args.requests, warm_up, args.slots, args.seed)
    flat = result["rss_mib_at_the_end"] <= result["rss_mib_after_the_warm_up"] * FLAT
    print(json.dumps({**result, "memory_flat": flat}, indent=1))
    return 0 if flat and result["server_alive"] and not result["wrong"] and not result["slots_still_busy"] else 1


if __name__ == "__main__":
    sys.exit(main())
