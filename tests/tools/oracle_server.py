#!/usr/bin/env python3
"""The scripts of this folder one after the other in one process, since loading torch and transformers takes longer
than a small model does.

usage: oracle_server.py     reads lines ["script.py", words...], answers each with {"out": what it printed} or
                            {"error": its traceback}, one line
"""
import contextlib
import importlib
import io
import json
import os
import sys
import traceback


def serve(requests, answers):
    for line in requests:
        script, *words = json.loads(line)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                importlib.import_module(os.path.splitext(script)[0]).main(*words)
            answer = {"out": printed.getvalue()}
        except BaseException:  # whoever asked decides what it means, also of sys.exit
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    # Libraries that write to file descriptor 1 must not write into an answer.
    to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, to)
