// A port of position ids and embeddings in JavaScript, for node, without a package.
//
// node port.js INPUT MODEL OUTPUT
//
// Each argument is the beginning of two files: INPUT.txt lists the tensors of INPUT.bin, a line each,
//     name dtype shape offset bytes
// with the shape's lengths joined by commas, "-" for a single number. The answers go to OUTPUT.txt and OUTPUT.bin.
"use strict";
const fs = require("fs");

// Reading a pack

const VIEWS = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, bool: Uint8Array };

function readFile(stem) {
  const numbers = fs.readFileSync(`${stem}.bin`);
  const tensors = {};
  for (const line of fs.readFileSync(`${stem}.txt`, "utf8").split("\n")) {
    const [name, dtype, lengths, offset, bytes] = line.split(" ");
    if (line.startsWith("#") || bytes === undefined || !(dtype in VIEWS)) continue;
    const own = Uint8Array.from(numbers.subarray(Number(offset), Number(offset) + Number(bytes))); // a copy, which is aligned
    const data = new VIEWS[dtype](own.buffer);
    tensors[name] = { shape: lengths === "-" ? [] : lengths.split(",").map(Number), data };
  }
  return tensors;
}

// Position ids

const f32 = Math.fround;

// torch.arange in float32, as x86-64 computes it: two vectors of 8 at a time, each counted on from its rounded first number.
function arange(start, end, step) {
  const count = Math.ceil((end - start) / step);
  const inVectors = Math.floor(count / 16) * 16;
  return Array.from({ length: count }, (_, i) => {
    const lane = i < inVectors ? i % 8 : 0;
    return f32(f32(start + step * (i - lane)) + lane * step);
  });
}

// For each of n patches of an axis, its row of a table of `side` rows.
function bucketCoords(n, side) {
  const edges = arange(1 / side, 1, 1 / side);
  const coords = arange(0, 1 - 1e-6, f32(1 / n));
  return coords.map((c) => edges.filter((edge) => edge <= c).length);
}

// (h*w,): row by row.
function sliceIds(h, w, side) {
  const columns = bucketCoords(w, side);
  return bucketCoords(h, side).flatMap((row) => columns.map((column) => row * side + column));
}

// Embeddings

function main([inputStem, modelStem, output]) {
  const input = readFile(inputStem), model = readFile(modelStem);
  const named = (name) => model[`vpm.embeddings.${name}`];
  const { shape: [width, channels, side], data: weight } = named("patch_embedding.weight");
  const bias = named("patch_embedding.bias").data, table = named("position_embedding.weight").data;
  const grid = Math.round(Math.sqrt(named("position_embedding.weight").shape[0]));
  const batch = input.tgt_sizes.shape[0], sizes = Array.from(input.tgt_sizes.data, Number);
  const lengths = Array.from({ length: batch }, (_, b) => sizes[2 * b] * sizes[2 * b + 1]);
  const most = Math.max(...lengths), inner = channels * side * side;
  const ids = new BigInt64Array(batch * most), embeddings = new Float32Array(batch * most * width); // padding has id 0
  for (let b = 0; b < batch; b++) {
    const strip = input[`strips.${b}`].data, row = lengths[b] * side; // (C, P, L*P)
    sliceIds(sizes[2 * b], sizes[2 * b + 1], grid).forEach((id, l) => { ids[b * most + l] = BigInt(id); });
    for (let l = 0; l < most; l++) {
      for (let d = 0; d < width; d++) {
        let sum = bias[d]; // where there is no patch its pixels are 0
        for (let k = 0; l < lengths[b] && k < inner; k++) {
          sum += strip[Math.floor(k / side) * row + l * side + (k % side)] * weight[d * inner + k];
        }
        embeddings[(b * most + l) * width + d] = sum + table[Number(ids[b * most + l]) * width + d];
      }
    }
  }
  const start = ids.byteLength;
  fs.writeFileSync(`${output}.txt`,
    `position_ids int64 ${batch},${most} 0 ${start}\nembeddings float32 ${batch},${most},${width} ${start} ${embeddings.byteLength}\n`);
  fs.writeFileSync(`${output}.bin`, Buffer.concat([Buffer.from(ids.buffer), Buffer.from(embeddings.buffer)]));
}

main(process.argv.slice(2));
