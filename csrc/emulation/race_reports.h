// Races in words.
#pragma once

#include <string>

#include "races.h"

namespace visionzip::emulation::races {

// "file:line", and where code was inlined, from where.
std::string text_of(const Origin& origin);

}  // namespace visionzip::emulation::races
