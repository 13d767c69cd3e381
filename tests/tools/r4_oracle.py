#!/usr/bin/env python3
"""An archive with R4 in transformers, by compressed-tensors' own code for transform_config: its perplexity, or logits.

usage: r4_oracle.py FOLDER TEXT WINDOW [LIMIT]     prints as oracle.py does
       r4_oracle.py FOLDER --logits IDS TO         of one window of ids (int32), as doubles into the file TO; prints {}

transformers does not read transform_config, so a copy of the folder without it, and without the key that makes
transformers refuse, is loaded, and the transforms are put on then.
"""
import json
import os
import sys
import tempfile

import numpy
import oracle
import torch
from compressed_tensors.transform import TransformConfig, apply_transform_config
from transformers import AutoModelForCausalLM


@torch.no_grad()
def logits(model, ids, to):
    model.eval()(torch.from_numpy(numpy.fromfile(ids, numpy.int32))[None]).logits[0].double().numpy().tofile(to)
    print("{}")


def main(folder, *more):
    with open(f"{folder}/config.json") as f:
        config = json.load(f)
    transforms = config["quantization_config"].pop("transform_config")
    del config["quantization_config"]["config_groups"]["group_0"]["needs_R4_online_by_transform_config"]

    def with_transforms(path, **how):
        model = AutoModelForCausalLM.from_pretrained(path, **how)
        apply_transform_config(model, TransformConfig.model_validate(transforms))
        return model

    with tempfile.TemporaryDirectory() as copy:
        for name in os.listdir(folder):
            if name != "config.json":
                os.symlink(os.path.abspath(f"{folder}/{name}"), f"{copy}/{name}")
        with open(f"{copy}/config.json", "w") as f:
            json.dump(config, f)
        if more[0] == "--logits":
            return logits(with_transforms(copy, dtype=torch.float32), *more[1:])
        oracle.main(copy, *more, load=with_transforms)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
