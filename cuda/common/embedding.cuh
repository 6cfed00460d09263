// Rows of the embedding: as they are in the file, or of the packed LM head where that is tied to it.
#pragma once
#include "matrix.cuh"
#include "skinny.cuh"

// Index of element (row, column) in a packed matrix (common/matrix.cuh, common/skinny.cuh).
__device__ __forceinline__ size_t packed_index(int row, int column, int chunks) {
  const int step = column / 4 % 4, lane = row % 8 * 4 + column % CHUNK / 16;
  const size_t unit = row / 16 * block_units(chunks) + (column / CHUNK * 4 + step) * WARP + lane;
  return unit * 8 + column % 4 / 2 * 4 + row % 16 / 8 * 2 + column % 2;
}

template <class T> struct EmbeddingTable {
  const T* table;
  int packed, hidden, chunks;
  __device__ __forceinline__ EmbeddingTable(const void* at, int is_packed, int width)
      : table(static_cast<const T*>(at)), packed(is_packed), hidden(width), chunks((width + CHUNK - 1) / CHUNK) {}
  __device__ __forceinline__ float at(int row, int column) const {
    return widen(table[packed ? packed_index(row, column, chunks) : size_t(row) * hidden + column]);
  }
};
