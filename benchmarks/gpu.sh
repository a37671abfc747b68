#!/usr/bin/env bash
# Ten minutes of one GPU: what a training step costs there, and ddpm, the published objective and auto on 32x32 images with noise,
# trained for equally many steps in eight minutes together. Writes OUT/steps.jsonl, a run folder each and OUT/table.md.
#
# bash benchmarks/gpu.sh OUT DATA      # DATA: as for atdm train, such as torchvision:name=CIFAR10,root=data
# DEVICE=cpu NET=mlp:width=16 SHAPE=1x8x8 SIZE=8 BUDGET=1 LONG=0 bash benchmarks/gpu.sh OUT digits    # to try it without one
set -euo pipefail
out=${1:?OUT}
data=${2:?DATA}
device=${DEVICE:-cuda} net=${NET:-cifar10} shape=${SHAPE:-3x32x32} size=${SIZE:-32}
budget=${BUDGET:-480} # seconds of the three trainings together
long=${LONG:-10}      # seconds of each measurement of a step
batch=128
mkdir -p "$out"

bench() {
    atdm bench --net "$net" --shape "$shape" --batch_size $batch --device "$device" --seconds "$long" --json "$@" >>"$out/steps.jsonl"
}
: >"$out/steps.jsonl"
bench
precision=no
if [ "$device" = cuda ]; then
    bench --precision bf16
    bench --precision bf16 --channels_last true
    bench --precision bf16 --channels_last true --compile true
    precision=bf16
fi

# As many steps as the three make in the budget, by the floors of their costs over ddpm's: 1, 8/3 and 1.1.
steps=$(python - "$out/steps.jsonl" "$budget" $batch <<'PY'
import json, sys

path, budget, batch = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
fastest = max(json.loads(line)["samples_per_second"]["ddpm"] for line in open(path))
print(max(2, int(budget * fastest / batch / (1 + 8 / 3 + 1.1))))
PY
)
for objective in ddpm robust_adv auto; do
    atdm train --data "$data" --image_size "$size" --net "$net" --corrupt gaussian:share=0.9,std=0.2 --objective.name $objective \
        --batch_size $batch --precision $precision --steps "$steps" --warmup $((steps / 20)) --metrics pixels --out "$out/$objective"
done
atdm compare "$out/ddpm" "$out/robust_adv" "$out/auto" --out "$out/table.md"
