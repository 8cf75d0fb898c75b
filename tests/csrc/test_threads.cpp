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
  std::vector<T> y, dx, tangent, surrogate;
  std::vector<uint8_t> mask, has_gradient;
  std::vector<double> dcap, dbias, dcap_of_mask;
  std::vector<int64_t> inside, capped;

  bool operator==(const Results&) const = default;
};

// What callers share, and only read.
template <class T>
struct Inputs {
  CapLayout layout;
  int64_t numel = layout.outer * layout.caps * layout.inner;
  std::vector<T> x = random_values<T>(numel), grad = random_values<T>(numel + 1), caps = random_values<T>(layout.caps);
};

template <class T>
Results<T> run(Inputs<T>& in, DType dtype, ParallelFor parallel_for) {
  const int64_t numel = in.numel, caps = in.layout.caps;
  const DimVector sizes{numel}, one{1}, order{0};
  const auto operand = [&](std::vector<T>& data) { return Operand(data.data(), sizes, one, order); };
  const Problem problem{dtype, numel, in.layout, in.caps.data(), parallel_for};
  Results<T> out{std::vector<T>(numel),
                 std::vector<T>(numel),
                 std::vector<T>(numel),
                 std::vector<T>(numel),
                 std::vector<uint8_t>((numel + 3) / 4),
                 std::vector<uint8_t>(in.layout.outer),
                 std::vector<double>(caps),
                 std::vector<double>(caps),
                 std::vector<double>(caps),
                 std::vector<int64_t>(caps),
                 std::vector<int64_t>(caps)};
  const Operand x = operand(in.x), grad = operand(in.grad), dx = operand(out.dx);
  BiasAndResidual added;
  added.bias = in.caps.data();
  added.residual = &grad;
  forward(problem, x, added, operand(out.y), out.mask.data());
  Saved as_output, as_mask;
  as_output.y = operand(out.y);
  as_mask.mask = out.mask.data();
  backward(problem, grad, as_mask, nullptr, out.dcap_of_mask.data(), nullptr, true);
  backward(problem, grad, as_output, &dx, out.dcap.data(), out.dbias.data(), false);
  tangent(problem, grad, in.caps.data(), as_mask, operand(out.tangent));
  surrogate(problem, grad, as_mask, nullptr, operand(out.surrogate));
  saturation(problem, x, {in.layout.outer, caps * in.layout.inner}, out.inside.data(), out.capped.data(),
             out.has_gradient.data());
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
