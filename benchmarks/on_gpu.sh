#!/usr/bin/env bash
# All benchmarks that need a GPU, one after the other, in at most 25 minutes on one H100 or H200:
#
#     benchmarks/on_gpu.sh [--minutes 25] [--toy] [FOLDER [PART ...]]
#
# FOLDER (default: gpu-benchmarks, in the checkout) gets NAME.json and NAME.log of each part; the
# logs end with the tables of docs/benchmarks. Pictures are generated once into
# datasets/gpu-benchmark. Parts, in this order (default: all):
#
#     pretrain   ours against timm's, synthetic batches, ViT-S, B, L, H
#     memory     the planner against torch.cuda.max_memory_allocated, ViT-B, L, H
#     profile    the costliest kernels of ViT-L
#     real       ours against timm's from shards, JPEG decoding on the GPU, ViT-B
#     loader     batches/s without a model: ours, decoding on the GPU, timm's
#     stages     what each stage of loading costs, 1 to 16 threads
#     overhead   our loop against a bare DeepSpeed loop
#     augment    RandAugment and mixup on the device
#     variants   compile, attention kernels, memory format, checkpointing, accumulation at ViT-L
#
# A part that takes too long is ended and keeps what it has; none starts once the time is up. The
# exit code is 1 if any part failed. --toy runs tiny stand-ins of `pretrain` and `memory` anywhere.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 2

minutes=25 toy=
while [[ ${1:-} == --* ]]; do
    case $1 in
        --minutes) minutes=$2; shift ;;
        --toy) toy=1 ;;
        *) sed -n 's/^# \{0,1\}//p' "$0"; [[ $1 == --help ]] && exit 0; exit 2 ;;
    esac
    shift
done
folder=${1:-gpu-benchmarks}
parts=("${@:2}")
deadline=$((SECONDS + minutes * 60))
failed=0

# run NAME SECONDS ARGUMENT...: python with the arguments, at most so long; never past the deadline.
run() {
    local name=$1 seconds=$2 left=$((deadline - SECONDS)) began=$SECONDS code
    if ((left <= 0)); then
        echo "$name: not started, the time is up"
        failed=1
        return
    fi
    ((seconds < left)) || seconds=$left
    timeout --kill-after=20 "$seconds" python "${@:3}" >"$folder/$name.log" 2>&1
    code=$?
    if ((code == 0)); then
        echo "$name: $((SECONDS - began)) s"
    else
        echo "$name: failed with $code after $((SECONDS - began)) s, see $folder/$name.log"
        failed=1
    fi
}

# part NAME SECONDS SCRIPT OPTION...: run it, unless others were asked for.
part() {
    if [[ ${#parts[@]} -eq 0 || " ${parts[*]} " == *" $1 "* ]]; then
        run "$1" "$2" "benchmarks/$3" --json "$folder/$1.json" "${@:4}"
    fi
}

# of SIZE DATA WHO VARIANT...: names of cases of gpu_pretrain.py, joined by commas.
of() {
    local names=() variant
    for variant in "${@:4}"; do names+=("$1:$2:$3:$variant"); done
    (IFS=,; echo "${names[*]}")
}

mkdir -p "$folder" || exit 2
if [[ -n $toy ]]; then
    part pretrain 480 gpu_pretrain.py --toy --sizes b
    part memory 300 gpu_memory.py --toy --micro 8 --stages 1
    exit "$failed"
fi
shards=datasets/gpu-benchmark
if [[ ! -e $shards/manifest.json ]]; then
    run shards 240 -c "from pathlib import Path; from benchmarks import loader_ours
loader_ours.generate_shards(Path('$shards'), shard_images=25)"
fi
data=(--shards "$shards")
both=(plain compile cuda_graphs channels_last checkpoint accumulate)
part pretrain 480 gpu_pretrain.py "${data[@]}" --data synthetic --runs 2 --blocks 1
part memory 300 gpu_memory.py --micro 16,32,64 --stages 1
part profile 120 gpu_pretrain.py "${data[@]}" --runs 1 --blocks 1 --profile \
    --cases "$(of l synthetic ours plain),$(of l synthetic timm plain)"
part real 240 gpu_pretrain.py "${data[@]}" --runs 1 --blocks 2 --cases \
    "$(of b real ours plain decode_cuda),$(of b real timm plain)"
part loader 120 loader_throughput.py "${data[@]}" --runs 1 \
    --contestants vitrain vitrain_cuda timm
part stages 120 loader_stages.py "${data[@]}" --runs 1 --threads 1 2 4 8 16
part overhead 90 step_overhead.py --ranks 1 --precision bf16 --images 128 --blocks 6
part augment 120 augment_cost.py --runs 1
part variants 600 gpu_pretrain.py "${data[@]}" --runs 1 --blocks 1 --cases \
    "$(of l synthetic ours "${both[@]}" flash cudnn foreach cudnn_search),$(of l synthetic timm fused "${both[@]}")"
exit "$failed"
