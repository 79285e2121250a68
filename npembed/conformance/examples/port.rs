//! A port of position ids and embeddings in Rust, with the standard library alone.
//!
//! port INPUT MODEL OUTPUT
//!
//! Each argument is the beginning of two files: INPUT.txt lists the tensors of INPUT.bin, a line each,
//!     name dtype shape offset bytes
//! with the shape's lengths joined by commas, "-" for a single number. The answers go to OUTPUT.txt and OUTPUT.bin.
//! Build: rustc --edition 2021 -O port.rs -o port

use std::collections::HashMap;
use std::{env, fs, io};

// Reading a pack

struct Tensor {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn floats(&self) -> Vec<f32> {
        self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn integers(&self) -> Vec<i64> {
        self.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

fn read_file(stem: &str) -> io::Result<HashMap<String, Tensor>> {
    let (list, numbers) = (fs::read_to_string(format!("{stem}.txt"))?, fs::read(format!("{stem}.bin"))?);
    let mut tensors = HashMap::new();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [name, _, lengths, offset, bytes] = words[..] {
            let shape = if lengths == "-" { vec![] } else { lengths.split(',').map(|n| n.parse().unwrap()).collect() };
            let (start, size): (usize, usize) = (offset.parse().unwrap(), bytes.parse().unwrap());
            tensors.insert(name.to_string(), Tensor { shape, bytes: numbers[start..start + size].to_vec() });
        }
    }
    Ok(tensors)
}

// Position ids

/// torch.arange in float32, as x86-64 computes it: two vectors of 8 at a time, each counted on from its rounded first number.
fn arange(start: f64, end: f64, step: f64) -> Vec<f32> {
    let count = ((end - start) / step).ceil() as usize;
    let in_vectors = count / 16 * 16;
    let lane = |i: usize| if i < in_vectors { i % 8 } else { 0 };
    (0..count)
        .map(|i| (((start + step * (i - lane(i)) as f64) as f32) as f64 + lane(i) as f64 * step) as f32)
        .collect()
}

/// For each of n patches of an axis, its row of a table of `side` rows.
fn bucket_coords(n: usize, side: usize) -> Vec<i64> {
    let edges = arange(1.0 / side as f64, 1.0, 1.0 / side as f64);
    let coords = arange(0.0, 1.0 - 1e-6, (1.0f32 / n as f32) as f64);
    coords.iter().map(|c| edges.partition_point(|edge| edge <= c) as i64).collect()
}

/// (h*w,): row by row.
fn slice_ids(h: usize, w: usize, side: usize) -> Vec<i64> {
    let (rows, columns) = (bucket_coords(h, side), bucket_coords(w, side));
    rows.iter().flat_map(|row| columns.iter().map(move |column| row * side as i64 + column)).collect()
}

// Embeddings

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().collect();
    let [_, input, model, output] = &arguments[..] else { panic!("use: port INPUT MODEL OUTPUT") };
    let (input, model) = (read_file(input)?, read_file(model)?);
    let kernels = &model["vpm.embeddings.patch_embedding.weight"];
    let (width, side) = (kernels.shape[0], kernels.shape[2]);
    let (weight, bias) = (kernels.floats(), model["vpm.embeddings.patch_embedding.bias"].floats());
    let positions = &model["vpm.embeddings.position_embedding.weight"];
    let (table, grid) = (positions.floats(), (positions.shape[0] as f64).sqrt().round() as usize);
    let sizes = input["tgt_sizes"].integers();
    let lengths: Vec<usize> = sizes.chunks(2).map(|hw| (hw[0] * hw[1]) as usize).collect();
    let (most, inner) = (*lengths.iter().max().unwrap(), weight.len() / width); // inner = C*P*P
    let (mut ids, mut embeddings) = (Vec::new(), Vec::new());
    for (b, hw) in sizes.chunks(2).enumerate() {
        let strip = input[&format!("strips.{b}")].floats(); // (C, P, L*P)
        let mut own = slice_ids(hw[0] as usize, hw[1] as usize, grid);
        own.resize(most, 0); // padding has id 0, and its pixels are 0
        for (l, id) in own.iter().enumerate() {
            for d in 0..width {
                let pixel = |k: usize| strip[k / side * lengths[b] * side + l * side + k % side] as f64;
                let places = if l < lengths[b] { inner } else { 0 };
                let sum: f64 = (0..places).map(|k| pixel(k) * weight[d * inner + k] as f64).sum();
                embeddings.push((sum + bias[d] as f64 + table[*id as usize * width + d] as f64) as f32);
            }
        }
        ids.extend(own);
    }
    let (batch, start) = (lengths.len(), ids.len() * 8);
    let list = format!(
        "position_ids int64 {batch},{most} 0 {start}\nembeddings float32 {batch},{most},{width} {start} {}\n",
        embeddings.len() * 4
    );
    let mut numbers: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    numbers.extend(embeddings.iter().flat_map(|x| x.to_le_bytes()));
    fs::write(format!("{output}.txt"), list)?;
    fs::write(format!("{output}.bin"), numbers)
}
