#pragma once

#include <string>
#include <vector>

// The reviewers of held answers, by the keys that they prove their names with: a file with one line for each,
//
//   SHA256  NAME
//
// the SHA-256 of the key in hex, and the name to the end of the line. Empty lines and lines that begin with # say
// nothing. A name may have several keys. `so8t audit add-reviewer` makes a key and its line.
class so8t_reviewers {
  public:
    // throws std::runtime_error: as name_of()
    explicit so8t_reviewers(const std::string & path);

    // The name of the reviewer with this key; empty: there is none. The file is read anew, so a line that was removed
    // counts at once. Throws std::runtime_error: the file cannot be read, or has a line of another form.
    std::string name_of(const std::string & key) const;

  private:
    struct reviewer {
        std::string sha256; // in hex
        std::string name;
    };

    std::vector<reviewer> read() const;

    std::string path;
};
