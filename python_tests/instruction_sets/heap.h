// operator new and delete of this driver: a block of static memory, of which nothing is given back but all at once.  An
// emulated CPU has no operating system behind it, which the C library's allocation may have to ask.
#pragma once

namespace visionzip::instruction_set_tests {

// Of all but what was there when this was called first: static objects'.
void empty_heap();

}  // namespace visionzip::instruction_set_tests
