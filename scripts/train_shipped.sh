#!/bin/bash
# Trains the weights that ship on one GPU machine that has JAX but no network.
#
#   bash scripts/train_shipped.sh pack CARRY [ICONS]             where there is a network
#   bash scripts/train_shipped.sh train CARRY STAGES MINUTES OUT  on the GPU machine
#   bash scripts/train_shipped.sh join PARTS OUT                 afterwards
#
# `pack` gathers in CARRY (30 MB) the wheels for Python 3.12 that such a machine lacks, and the sets
# of icons. Copy the repository and CARRY there. `train` runs the stages one after the other, each
# for its share of MINUTES, and leaves in OUT the exported weights in parts of 15 MB and the loss
# of each stage. Given again, it continues from CARRY/work. Learn the steps a minute from a first
# call; then give the last one FLAGS with the num_steps at which the rate has fallen, such as
# FLAGS="--config.stages.base.train.num_steps=12000". BATCH_SIZE is 256 by default.
#
# STAGES are words CONFIG:STAGE, such as "icons:base icons:sr256" or "shapes:base shapes:sr64".
set -euo pipefail

WHEELS="array_record emoji grain ml_collections tensorboardX contextlib2 portpicker resvg_py
  orbax_checkpoint importlib_resources nest_asyncio"
SETTINGS="--config.stages.{}.train.batch_size=${BATCH_SIZE:-256}
  --config.stages.{}.train.save_every=1000000 --config.stages.{}.train.preview_every=1000000
  --config.stages.{}.train.log_every=100"

fail() {
  echo "error: $1" >&2
  exit 2
}

pack() {
  local carry=$1 icons=${2:-}
  mkdir -p "$carry/wheels"
  # pip takes a platform by its exact name only.
  local platforms=()
  for minor in 17 24 27 28 31 34; do
    platforms+=(--platform "manylinux_2_${minor}_x86_64")
  done
  for package in $WHEELS; do
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
      --python-version 3.12 --platform manylinux2014_x86_64 "${platforms[@]}" \
      -d "$carry/wheels" "$package"
  done
  if [[ -z $icons ]]; then
    icons=$carry/icons
    bash "$(dirname "$0")/fetch_icons.sh" "$icons"
  fi
  # Without modules of JavaScript and without skin tones, which are not trained on.
  (cd "$icons" && find . -type f \( -name '*.json' -o -name '*.webp' \) \
    -not -name '*1f3f[b-f]*' -print0 | sort -z | tar --null -cf - -T -) |
    xz -6 -T0 >"$carry/icons.tar.xz"
  [[ $icons != "$carry/icons" ]] || rm -r "$icons"
  du -sh "$carry"
}

prepare() {
  local carry=$1 work=$1/work
  mkdir -p "$work"
  if [[ ! -d $work/site ]]; then
    # Not in place at once, so that a killed installation is not taken for a whole one.
    rm -rf "$work/site.new"
    python3 -m pip install -q --no-index --no-deps --upgrade --target "$work/site.new" \
      "$carry"/wheels/*.whl
    mv "$work/site.new" "$work/site"
  fi
  export PYTHONPATH=$work/site:$PWD JAX_COMPILATION_CACHE_DIR=$work/cache
  if [[ -e $carry/icons.tar.xz && ! -d $work/icons ]]; then
    mkdir -p "$work/icons.new"
    tar -xJf "$carry/icons.tar.xz" -C "$work/icons.new"
    mv "$work/icons.new" "$work/icons"
  fi
}

# Draws the icons at one size on all cores: a store that needs little decoding.
draw_icons() {
  local work=$1 size=$2 count
  [[ -e $work/store$size/manifest.json ]] && return
  count=$(nproc)
  local jobs=()
  for ((i = 0; i < count; i++)); do
    JAX_PLATFORMS=cpu python3 -m imagen_jax.cli.prepare_data --config=configs/icons.py \
      --config.data.source=icons --config.data.path="$work/icons" --image_size="$size" \
      --out="$work/store$size" --process_index="$i" --process_count="$count" --shard_size=250 \
      >"$work/draw$size.$i.log" 2>&1 &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do
    wait "$job" || fail "icons could not be drawn, see $work/draw$size.*.log"
  done
}

train() {
  local carry=$1 stages=$2 minutes=$3 out=$4 work=$1/work
  local deadline=$((SECONDS + minutes * 60)) left=0 status
  mkdir -p "$out"
  prepare "$carry"
  for entry in $stages; do left=$((left + 1)); done
  for entry in $stages; do
    local name=${entry%%:*} stage=${entry##*:} data=()
    if [[ $name == icons ]]; then
      local size=256
      [[ $stage == base ]] && size=64
      draw_icons "$work" "$size"
      data=(--config.data.path="$work/store$size")
    fi
    # A minute for the export. The other stages get what this one leaves.
    local seconds=$(((deadline - SECONDS - 60) / left))
    left=$((left - 1))
    ((seconds > 30)) || fail "$minutes minutes are too few for the stages $stages"
    # shellcheck disable=SC2086  # settings are words
    timeout -s TERM "$seconds" python3 train.py --config="configs/$name.py" "${data[@]}" \
      --workdir="$work/runs/$name" --stage="$stage" ${SETTINGS//\{\}/$stage} ${FLAGS:-} \
      2>&1 | tr '\r' '\n' | grep -v "^ *$" | tail -n 25 && status=0 || status=${PIPESTATUS[0]}
    # 124: the time is over; 143: it ended by the same signal. Both have saved.
    case $status in 0 | 124 | 143) ;; *) fail "the training of $entry ended with status $status" ;; esac
    [[ -e $work/runs/$name/$stage/metrics.jsonl ]] ||
      fail "$minutes minutes are too few: $entry has made no step"
    tail -n 1 "$work/runs/$name/$stage/metrics.jsonl"
    cp "$work/runs/$name/$stage/metrics.jsonl" "$out/$name-$stage.jsonl"
  done
  local names
  names=$(for entry in $stages; do echo "${entry%%:*}"; done | sort -u)
  for name in $names; do
    JAX_PLATFORMS=cpu python3 -m imagen_jax.cli.export --workdir="$work/runs/$name" \
      --out="$work/exported/$name"
    tar -C "$work/exported" -cf - "$name" | split -b 15000000 - "$out/$name.tar."
  done
  ls -l "$out"
}

join() {
  local parts=$1 out=$2
  mkdir -p "$out"
  for first in "$parts"/*.tar.aa; do
    cat "${first%.aa}".?? | tar -xf - -C "$out"
  done
  ls "$out"
}

case ${1:-} in
  pack) [[ $# -ge 2 && $# -le 3 ]] || fail "give: pack CARRY [ICONS]" ;;
  train) [[ $# -eq 5 ]] || fail "give: train CARRY STAGES MINUTES OUT" ;;
  join) [[ $# -eq 3 ]] || fail "give: join PARTS OUT" ;;
  *) fail "give pack, train or join; the head of this file says how" ;;
esac
"$@"
