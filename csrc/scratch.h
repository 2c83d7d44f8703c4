// Memory of a thread for its tiles: grows, and lives as long as the thread.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace {

class Scratch {
 public:
  ~Scratch() { std::free(block_); }

  // `count` floats on a cache line, their contents undefined; null when there is no memory.
  float* floats(std::int64_t count) {
    if (count > size_) {
      std::free(block_);
      const std::int64_t bytes = (count * 4 + 4095) / 4096 * 4096;
      block_ = static_cast<float*>(std::aligned_alloc(64, static_cast<std::size_t>(bytes)));
      size_ = block_ ? count : 0;
    }
    return block_;
  }

 private:
  float* block_ = nullptr;
  std::int64_t size_ = 0;
};

inline Scratch& scratch() {
  thread_local Scratch mine;
  return mine;
}

}  // namespace
