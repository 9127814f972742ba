#!/usr/bin/env bash
# Alignment and uniformity in an unmodified clone of solo-learn, on a CPU, for any image folder.
#
#   pip install 'hsplugin[solo]'
#   bash examples/solo_learn.sh IMAGES [OUT]
#
# IMAGES holds train/CLASS/*.png and val/CLASS/*.png with at least five classes; training resizes
# them to 32 pixels. OUT (default: solo_learn_run) receives a clone of solo-learn, the checkpoints
# and lightning_logs, with geometry/alignment and geometry/uniformity beside the accuracy.
set -euo pipefail
images=$(realpath "$1")
mkdir -p "${2:-solo_learn_run}" && cd "${2:-solo_learn_run}"
if [ ! -d solo-learn ]; then
  git clone --quiet https://github.com/vturrisi/solo-learn
  git -C solo-learn checkout --quiet 9187ea39c2c3f43c455ab06664d2b019a9802954
fi
data=(data.dataset=custom data.format=image_folder data.num_workers=2
  "data.train_path=$images/train" "data.val_path=$images/val")
cpu=(accelerator=cpu 'devices="1"' sync_batchnorm=False precision=32)

# hsplugin provides the config, and the environment variable adds the monitor. The online accuracy
# is train_acc1: solo-learn always validates custom images at 224 pixels, so val_acc1 and
# geometry/val_* come from images of another size than in training.
HSPLUGIN_MONITOR=1 python solo-learn/main_pretrain.py --config-name align_uniform \
  max_epochs=3 optimizer.batch_size=64 +scheduler.warmup_epochs=1 "${data[@]}" "${cpu[@]}"

# Linear evaluation of the last checkpoint with one of solo-learn's configs, which trains and
# validates at 224 pixels: slower, and a poor match for a backbone trained at 32.
checkpoint=$(ls -t trained_models/align_uniform/*/*.ckpt | head -n 1)
python solo-learn/main_linear.py --config-path "$PWD/solo-learn/scripts/linear/imagenet-100" \
  --config-name simclr wandb.enabled=False auto_resume.enabled=False pretrain_method=align_uniform \
  "pretrained_feature_extractor=\"$PWD/$checkpoint\"" \
  max_epochs=2 optimizer.batch_size=64 "${data[@]}" "${cpu[@]}"
