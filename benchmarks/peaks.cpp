// What this processor can do at best: multiply-adds a second, alone and with what our kernels need
// for each of them, and bytes read a second from each level of memory. Prints one JSON object. Compiled by roofline.py: g++ -O3 -march=native -pthread.
//   peaks THREADS
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int Indices __attribute__((vector_size(4 * kLanes)));

static double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A register that the compiler must have in a register here and may not reason about.
#if defined(__x86_64__)
#define IN_REGISTER(v) asm volatile("" : "+x"(v))
#elif defined(__aarch64__)
#define IN_REGISTER(v) asm volatile("" : "+w"(v))
#else
#define IN_REGISTER(v) asm volatile("" : "+m"(v))
#endif

constexpr int kLines = 32;
constexpr int kSums = 10;  // enough to hide the latency; 16 registers hold them and two more
// Variables of their own: gcc keeps an array in memory.
#define SUMS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9)
#define MAKE(i) Vector sum##i = {};
#define KEEP(i) IN_REGISTER(sum##i);
#define TAKE(i) *out += sum##i[0];

// Rounds of kSums multiply-adds in registers.
static void multiply(long rounds, float* out) {
  Vector a = Vector{} + 1e-6f, b = a;
  SUMS(MAKE)
  for (long round = 0; round < rounds; ++round) {
    IN_REGISTER(a);
#define STEP(i) sum##i += a * b;
    SUMS(STEP)
#undef STEP
    SUMS(KEEP)
  }
  SUMS(TAKE)
}

// The same, each with a permutation of its own, as the kernel of tokens picks its inputs.
static void permute(long rounds, float* out) {
  Vector a = Vector{} + 1e-6f, b = a;
  Indices places = {};
  SUMS(MAKE)
  for (long round = 0; round < rounds; ++round) {
    IN_REGISTER(a);
    IN_REGISTER(b);
#define STEP(i)           \
  IN_REGISTER(places);    \
  sum##i += a * __builtin_shuffle(b, places);
    SUMS(STEP)
#undef STEP
    SUMS(KEEP)
  }
  SUMS(TAKE)
}

// Each with an operand from the first cache; `lines` of kSums vectors begin at offsets that are
// loaded, as the kernel of columns finds its inputs, or where `offsets` is null follow each other.
static void from_cache(long rounds, const Vector* from, const long* offsets, float* out) {
  Vector a = Vector{} + 1e-6f;
  SUMS(MAKE)
  for (long round = 0; round < rounds; ++round) {
    const Vector* line = from + (offsets ? offsets[round % kLines] : round % kLines * kSums);
    IN_REGISTER(a);
#define STEP(j) sum##j += a * line[j];
    SUMS(STEP)
#undef STEP
    SUMS(KEEP)
  }
  SUMS(TAKE)
}

// Reads all of a buffer, several times.
static void read(const Vector* from, long count, long rounds, float* out) {
  SUMS(MAKE)
  for (long round = 0; round < rounds; ++round)
    for (long i = 0; i + kSums <= count; i += kSums) {
#define STEP(j) sum##j += from[i + j];
      SUMS(STEP)
#undef STEP
      SUMS(KEEP)
    }
  SUMS(TAKE)
}

// The best of several tries: what others on the machine take is not the processor's limit.
template <typename Work>
static double best(int threads, Work work) {
  double least = 1e9;
  for (int attempt = 0; attempt < 7; ++attempt) {
    std::vector<std::thread> pool;
    const double start = seconds();
    for (int i = 1; i < threads; ++i) pool.emplace_back(work, i);
    work(0);
    for (auto& thread : pool) thread.join();
    const double took = seconds() - start;
    if (took < least) least = took;
  }
  return least;
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  std::vector<float> out(16 * threads);
  const long rounds = 20'000'000 / kSums;
  static Vector lines[kLines * kSums];
  long offsets[kLines];
  for (int i = 0; i < kLines * kSums; ++i) lines[i] = Vector{} + 1.0f;
  for (int i = 0; i < kLines; ++i) offsets[i] = i * 7 % kLines * kSums;
  const auto gflops = [&](auto work) {
    const double took = best(threads, [&](int i) { work(&out[16 * i]); });
    return 2e-9 * kLanes * kSums * rounds * threads / took;
  };
  std::printf("{\"gflops\": %.1f", gflops([&](float* to) { multiply(rounds, to); }));
  std::printf(", \"permuted\": %.1f", gflops([&](float* to) { permute(rounds, to); }));
  const auto cached = [&](const long* at) {
    return gflops([&](float* to) { from_cache(rounds, lines, at, to); });
  };
  std::printf(", \"cached\": %.1f, \"looked up\": %.1f", cached(nullptr), cached(offsets));
  const struct { const char* name; long bytes; } levels[] = {
      {"L1", 24 << 10}, {"L2", 512 << 10}, {"L3", 8 << 20}, {"memory", 256 << 20}};
  for (const auto& level : levels) {
    const long count = level.bytes / sizeof(Vector), times = (1L << 30) / level.bytes;
    std::vector<Vector*> buffers;
    for (int i = 0; i < threads; ++i) {
      auto* buffer = static_cast<Vector*>(std::aligned_alloc(4096, level.bytes));
      for (long j = 0; j < count; ++j) buffer[j] = Vector{} + 1.0f;
      buffers.push_back(buffer);
    }
    const double took = best(threads, [&](int i) { read(buffers[i], count, times, &out[16 * i]); });
    std::printf(", \"%s\": %.1f", level.name, 1e-9 * level.bytes * times * threads / took);
    for (auto* buffer : buffers) std::free(buffer);
  }
  std::printf("}\n");
  return out[0] == 1.25f;  // Keep the sums.
}
