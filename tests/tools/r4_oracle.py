#!/usr/bin/env python3
"""Perplexity of an archive with R4 in transformers, by compressed-tensors' own code for transform_config.

usage: r4_oracle.py FOLDER TEXT WINDOW [LIMIT]     prints as oracle.py does

transformers does not read transform_config, so a copy of the folder without it, and without the key that makes
transformers refuse, is loaded, and the transforms are put on then.
"""
import json
import os
import sys
import tempfile

import oracle
from compressed_tensors.transform import TransformConfig, apply_transform_config
from transformers import AutoModelForCausalLM


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
        oracle.main(copy, *more, load=with_transforms)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
