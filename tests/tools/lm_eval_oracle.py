#!/usr/bin/env python3
"""Zero-shot questions through lm-evaluation-harness's Hugging Face backend in float32, beside what `spinshard eval --items`
wrote. Task files are those of bench/tasks.py: prompts were written there; this holds tokens, likelihoods and choices.

usage: lm_eval_oracle.py MODEL ITEMS TASK.jsonl... [--least 0.995]     needs lm_eval, torch, transformers
"""
import task_items


def load(folder):
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=8)

    def answer(pairs):
        return model.loglikelihood([Instance(request_type="loglikelihood", doc={}, arguments=(begin, " " + end), idx=k)
                                    for k, (begin, end) in enumerate(pairs)], disable_tqdm=True)

    return f"lm_eval {lm_eval.__version__}", answer


if __name__ == "__main__":
    task_items.main(__doc__, load)
