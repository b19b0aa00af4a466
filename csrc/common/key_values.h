// Settings as text, such as "team=7,threads=256", of an environment variable.
#pragma once

#include <algorithm>
#include <charconv>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace visionzip {

// The pairs in order.  variable: for errors.  Throws std::invalid_argument.
inline std::vector<std::pair<std::string, std::string>> parse_key_values(const std::string& variable,
                                                                         const std::string& text) {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string item = text.substr(begin, end - begin);
    const size_t equals = item.find('=');
    if (equals == std::string::npos) {
      throw std::invalid_argument(variable + " has \"" + item + "\"; expected key=value, with commas between");
    }
    std::string key = item.substr(0, equals);
    for (const auto& [other, value] : pairs) {
      if (other == key) throw std::invalid_argument(variable + " has " + key + " twice; expected it once");
    }
    pairs.emplace_back(std::move(key), item.substr(equals + 1));
    begin = end + 1;
  }
  return pairs;
}

[[noreturn]] inline void bad_value(const std::string& variable, const std::string& key, const std::string& value,
                                   const std::string& expected) {
  throw std::invalid_argument(variable + " has " + key + "=\"" + value + "\"; expected " + expected);
}

[[noreturn]] inline void unknown_key(const std::string& variable, const std::string& key, const std::string& expected) {
  throw std::invalid_argument(variable + " has the key \"" + key + "\"; expected " + expected);
}

// The whole value as a number from least to most.
template <class Number>
Number parse_number(const std::string& variable, const std::string& key, const std::string& value, Number least,
                    Number most, const std::string& expected) {
  Number number{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  const bool whole = error == std::errc{} && end == value.data() + value.size() && !value.empty();
  if (!whole || !(number >= least && number <= most)) bad_value(variable, key, value, expected);
  return number;
}

}  // namespace visionzip
