// Passes that several threads run at once, on inputs that they share, give the bits of one thread alone. Built with
// ThreadSanitizer too, which finds what two threads touch without order.
#include <memory>
#include <random>
#include <thread>

#include "check.h"
#include "cpu/kernels.h"

using namespace dreluop;
using namespace dreluop::cpu;

namespace {

constexpr int kCallers = 4;

void serial(int64_t n, int64_t, const Body& body) {
  if (n > 0) body(0, n);
}

// The least segments that a pass allows, each on a thread of its own.
void threaded(int64_t n, int64_t grain, const Body& body) {
  std::vector<std::thread> threads;
  const int64_t segment = std::max<int64_t>({1, grain, n / 4});
  for (int64_t begin = 0; begin < n; begin += segment)
    threads.emplace_back([&body, begin, end = std::min(n, begin + segment)] { body(begin, end); });
  for (std::thread& thread : threads) thread.join();
}

template <class T>
std::vector<T> random_values(int64_t n) {
  std::mt19937 generator(static_cast<uint32_t>(n));
  std::normal_distribution<double> normal;
  std::vector<T> values(n);
  for (T& value : values) value = static_cast<T>(normal(generator));
  return values;
}

template <class T>
struct Results {
  std::vector<T> y, dx, jvp, surrogate, dcap, dbias;
  std::vector<uint8_t> mask, has_gradient;
  std::vector<double> dcap_of_mask;
  std::vector<int64_t> counts;

  bool operator==(const Results&) const = default;
};

// What callers share, and only read.
template <class T>
struct Inputs {
  CapLayout layout;
  int64_t numel = layout.outer * layout.caps * layout.inner;
  std::vector<T> x = random_values<T>(numel), grad = random_values<T>(numel + 1), caps = random_values<T>(layout.caps);
  std::vector<double> wide_caps{caps.begin(), caps.end()};
};

constexpr int64_t kOne = 1;

template <class T>
Operand operand(std::vector<T>& data) {
  return {data.data(), &kOne};
}

template <class T>
PerCap per_cap(std::vector<T>& data) {
  return {data.data(), sizeof(T) == sizeof(double) ? DType::kFloat64 : DType::kFloat32, &kOne};
}

template <class T>
Results<T> run(Inputs<T>& in, DType dtype, ParallelFor parallel_for) {
  const int64_t numel = in.numel, caps = in.layout.caps;
  Problem problem;
  problem.dtype = dtype;
  problem.rank = 1;
  problem.sizes = &numel;
  problem.layout = in.layout;
  problem.cap_rank = 1;
  problem.cap_sizes = &caps;
  problem.parallel_for = parallel_for;
  const std::vector<T> elements(numel), sums(caps);
  Results<T> out{elements,
                 elements,
                 elements,
                 elements,
                 sums,
                 sums,
                 std::vector<uint8_t>((numel + 3) / 4),
                 std::vector<uint8_t>(in.layout.outer),
                 std::vector<double>(caps),
                 std::vector<int64_t>(3 * caps)};
  const Operand x = operand(in.x), grad = operand(in.grad), y = operand(out.y);
  const PerCap cap = per_cap(in.caps);
  uint8_t* const mask = out.mask.data();
  forward(problem, {x, y, grad, cap, cap, mask, {}, 0});
  backward(problem, {grad, {}, {}, mask, per_cap(in.wide_caps), per_cap(out.dcap_of_mask), {}, {}, 0});
  backward(problem, {grad, y, operand(out.dx), nullptr, cap, per_cap(out.dcap), per_cap(out.dbias), {}, 0});
  jvp(problem, {grad, {}, operand(out.jvp), mask, cap, cap});
  surrogate(problem, {grad, {}, operand(out.surrogate), mask, {}, {}});
  saturation(problem,
             {x, cap, out.counts.data(), &kOne, out.has_gradient.data(), in.layout.outer, caps * in.layout.inner});
  return out;
}

template <class T>
void check(DType dtype, const CapLayout& layout) {
  Inputs<T> in{layout};
  std::vector<Results<T>> found(kCallers);
  std::vector<std::thread> callers;
  // Before anything ran alone: what is set up at first use is then set up by several at once.
  for (Results<T>& result : found) callers.emplace_back([&in, &result, dtype] { result = run(in, dtype, threaded); });
  for (std::thread& caller : callers) caller.join();
  const Results<T> alone = run(in, dtype, serial);
  for (const Results<T>& result : found)
    CHECK(result == alone,
          std::to_string(layout.outer) + " x " + std::to_string(layout.caps) + " x " + std::to_string(layout.inner));
}

}  // namespace

int main() {
  // Long runs, many caps, columns; each cut into several segments.
  for (const CapLayout& layout : {CapLayout{1, 1, 300007}, CapLayout{9, 5, 7001}, CapLayout{120, 3001, 1},
                                  CapLayout{70, 513, 9}, CapLayout{3001, 3, 31}, CapLayout{1, 2, 2}}) {
    check<float>(DType::kFloat32, layout);
    check<double>(DType::kFloat64, layout);
  }
  std::puts("threads: ok");
}
