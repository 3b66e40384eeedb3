"""The server, asked by the openai client: any program that speaks to OpenAI can use it in this way.

Here the server is started and ended by the example; by hand it is: pyaircache serve --aircache-keep 0.1 --port 8080

python examples/openai_server.py
"""

import base64
import socket
import subprocess
import sys
import time

import httpx
import openai

from pyaircache import sample

with socket.create_server(("127.0.0.1", 0)) as free:
    url = f"http://127.0.0.1:{free.getsockname()[1]}"

page = sample()
data = base64.b64encode(page.path.read_bytes()).decode()
content = [
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
    {"type": "text", "text": page.question},
]

command = [sys.executable, "-m", "pyaircache", "serve", "--aircache-keep", "0.1", "--port", url.rpartition(":")[2]]
with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
    try:
        while server.poll() is None:  # until it answers; it says 503 while it loads
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        messages = [{"role": "user", "content": content}]
        for keep in (1.0, 0.2):  # a request may set it anew
            answer = client.chat.completions.create(
                model="any", messages=messages, temperature=0, extra_body={"aircache_keep": keep}
            )
            print(keep, answer.choices[0].message.content, answer.timings.get("aircache"))
    finally:
        server.terminate()
