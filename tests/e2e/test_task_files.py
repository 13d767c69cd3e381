#!/usr/bin/env python3
"""bench/tasks.py: items of each data set become the prompts of lm-evaluation-harness, written out here; and eval reads them, several
with commas, with their average."""
import json
import math
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
from spin import STORIES, TESTS, Case, main  # noqa: E402

SCRIPT = os.path.join(os.environ.get("SPINSHARD_SOURCE", os.path.dirname(TESTS)), "bench", "tasks.py")
ARC = {"question": "Why?", "choices": {"text": ["this", "that"], "label": ["A", "B"]}, "answerKey": "B"}
CASES = [
    ("boolq", {"passage": "P.", "question": "is it so", "label": 1}, ["P.\nQuestion: is it so?\nAnswer:", ["no", "yes"], 1]),
    ("boolq", {"passage": "P.", "question": "is it so", "answer": False, "title": "T"}, ["P.\nQuestion: is it so?\nAnswer:", ["no", "yes"], 0]),
    ("piqa", {"goal": "Do", "sol1": "a", "sol2": "b", "label": 1}, ["Question: Do\nAnswer:", ["a", "b"], 1]),
    ("siqa", {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"}, ["Q: C. Q?\nA:", ["a", "b", "c"], 2]),
    ("hellaswag", {"activity_label": "Baking", "ctx_a": "[header] He bakes [title] Mix.", "ctx_b": "then he", "endings": ["eats [step] it.", "runs."],
                   "label": "0"}, ["Baking: He bakes. Mix. Then he", ["eats it.", "runs."], 0]),
    ("arc_easy", ARC, ["Question: Why?\nAnswer:", ["this", "that"], 1]),
    ("arc_challenge", {"question": {"stem": "Why?", "choices": [{"text": "this", "label": "1"}, {"text": "that", "label": "2"}]}, "answerKey": "1"},
     ["Question: Why?\nAnswer:", ["this", "that"], 0]),
    ("openbookqa", {"question_stem": "The sun", "choices": ARC["choices"], "answerKey": "A"}, ["The sun", ["this", "that"], 0]),
]


class TaskFiles(Case):
    def make(self, task, *items, name=None):
        source, out = self.path("source.jsonl"), self.path((name or task) + ".jsonl")
        with open(source, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(item) + "\n" for item in items)
        r = subprocess.run([sys.executable, SCRIPT, task, source, "--out", out], capture_output=True, text=True)
        self.assertEqual(r.returncode, 0, r.stderr)
        with open(out, encoding="utf-8") as f:
            return out, [json.loads(line) for line in f]

    def test_prompts(self):
        for task, item, want in CASES:
            _, (got,) = self.make(task, item)
            self.assertEqual([got["context"], got["choices"], got["gold"]], want)
        _, (got,) = self.make("winogrande", {"sentence": "The cup fits, as the _ is large.", "option1": "cup", "option2": "box", "answer": "2"})
        self.assertEqual(got, {"contexts": ["The cup fits, as the cup", "The cup fits, as the box"], "continuation": "is large.", "gold": 1})
        _, (got,) = self.make("lambada", {"text": "He went to the park"})
        self.assertEqual(got, {"context": "He went to the", "continuation": "park"})

    def test_read_by_eval(self):
        files = [self.make(task, item, item, item, name=f"{i}-{task}")[0] for i, (task, item, _) in enumerate(CASES[2:5])]
        got = self.good("eval", "--model", STORIES, "--tasks", ",".join(files), "--json").json()
        self.assertEqual([t["n"] for t in got["tasks"]], [3, 3, 3])
        for key in ("acc", "acc_norm"):
            self.assertAlmostEqual(got["tasks_average"][key], sum(t[key] for t in got["tasks"]) / 3)
            self.assertAlmostEqual(got["tasks_average"][key + "_stderr"], math.hypot(*(t[key + "_stderr"] for t in got["tasks"])) / 3)
        self.assertIn("average of tasks", self.good("eval", "--model", STORIES, "--tasks", ",".join(files)).out)

    def test_prompt_is_the_query_with_answer(self):
        """A question as prompt and as query: the same tokens, so the same likelihoods."""
        items = [self.path("items-a"), self.path("items-b")]
        prompt, _ = self.make("piqa", CASES[2][1])
        query = self.path("query.jsonl")
        with open(query, "w", encoding="utf-8") as f:
            f.write(json.dumps({"query": "Question: Do\n", "choices": ["a", "b"], "gold": 1}) + "\n")
        for path, to in zip((prompt, query), items):
            self.good("eval", "--model", STORIES, "--tasks", path, "--items", to)
        got = []
        for path in items:
            with open(path, encoding="utf-8") as f:
                got.append(json.loads(f.read())["loglikelihood"])
        self.assertEqual(*got)

    def test_bad(self):
        r = subprocess.run([sys.executable, SCRIPT, "piqa", os.path.join(STORIES, "config.json"), "--out", self.path("x")], capture_output=True, text=True)
        self.assertNotEqual(r.returncode, 0)
        self.bad(2, ["empty name"], "eval", "--model", STORIES, "--tasks", "a,,b")


if __name__ == "__main__":
    main()
