// CHECK: stops the test with the place, the condition and what the caller adds.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#define CHECK(condition, ...)                                                                                    \
  do {                                                                                                           \
    if (!(condition)) {                                                                                          \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, std::string(__VA_ARGS__).c_str()); \
      std::exit(1);                                                                                              \
    }                                                                                                            \
  } while (false)

#define CHECK_THROWS(expression, part)                                 \
  do {                                                                 \
    std::string message;                                               \
    try {                                                              \
      (void)(expression);                                              \
    } catch (const std::exception& error) {                            \
      message = error.what();                                          \
    }                                                                  \
    CHECK(message.find(part) != std::string::npos, "got: " + message); \
  } while (false)
