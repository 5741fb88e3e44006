#!/bin/sh
# A series of models of one corpus, from one dial: width, batch, learning rate and length of training follow the depth.
#   sh recipes/depth-series.sh corpora/text
set -e
corpus=${1:?the directory of a tokenised corpus}
for depth in 2 3 4 6 8; do
    alignlab pretrain "$corpus" --depth "$depth" --name "depth-$depth"
done
