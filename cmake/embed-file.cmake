# cmake -DIN=page.html -DOUT=page.h -DNAME=page_html -P embed-file.cmake
#
# Writes the bytes of IN as `static const char NAME[]` and `static const size_t NAME_size` to OUT.

file(READ "${IN}" bytes HEX)
string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${bytes}")
file(WRITE "${OUT}" "#include <cstddef>\n\nstatic const char ${NAME}[] = {\n${bytes}\n};\n\nstatic const size_t ${NAME}_size = sizeof(${NAME});\n")
