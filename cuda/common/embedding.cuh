// Rows of the embedding: as they are in the file, or packed, as the LM head where that is tied to it, or as codes.
#pragma once
#include "coding.cuh"
#include "matrix.cuh"
#include "skinny.cuh"

// Index of element (row, column) in a packed matrix (common/matrix.cuh, common/skinny.cuh).
__device__ __forceinline__ size_t packed_index(int row, int column, int chunks) {
  const int step = column / 4 % 4, lane = row % 8 * 4 + column % CHUNK / 16;
  const size_t unit = row / 16 * block_units(chunks) + (column / CHUNK * 4 + step) * WARP + lane;
  return unit * 8 + column % 4 / 2 * 4 + row % 16 / 8 * 2 + column % 2;
}

// What EmbeddingTable is told of a table: 0, by rows; 1, packed; else packed as codes, and this is the word of their Coding.
enum TableForm { ROWS, PACKED };

template <class T> struct EmbeddingTable {
  const T* table;
  int form, hidden, chunks;
  __device__ __forceinline__ EmbeddingTable(const void* at, int table_form, int width)
      : table(static_cast<const T*>(at)), form(table_form), hidden(width), chunks((width + CHUNK - 1) / CHUNK) {}
  __device__ __forceinline__ float at(int row, int column) const {
    if (form > PACKED) return coded_weight(reinterpret_cast<const uint4*>(table), Coding{form}, row, column, chunks);
    return widen(table[form == PACKED ? packed_index(row, column, chunks) : size_t(row) * hidden + column]);
  }
};
