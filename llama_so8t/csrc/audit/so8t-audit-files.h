#pragma once

#include "so8t-audit-chain.h"

#include <cstdint>
#include <string>

// The files of an audit log: the current one, which this process alone writes, and the older parts FILE.1, FILE.2, ...
// that it leaves behind. Functions throw std::runtime_error; after that, the next call goes on at the same step.

class so8t_audit_files {
  public:
    // opens the current file, as its only writer
    explicit so8t_audit_files(const std::string & path);
    ~so8t_audit_files();

    so8t_audit_files(const so8t_audit_files &)             = delete;
    so8t_audit_files & operator=(const so8t_audit_files &) = delete;

    // The newest line. n_unfinished: bytes of a part of a line behind it, of a server that was killed; cut() removes them.
    so8t_audit_link resume(uint64_t & n_unfinished);

    // the current file has its name, and the size that it was given here
    void check() const;

    void append(const std::string & line); // a whole line with its newline
    void cut();                            // what a failed append() has left behind the last whole line
    void undo(uint64_t size);              // takes back the lines behind the first size bytes; does not throw
    void sync();                           // all lines are on the disk

    // A rotation has two steps, for a process that is killed between them: the current file, which ends with a line
    // "rotate", gets the next number; a new one takes its name.
    void move_away();
    void begin_new();

    uint64_t size() const { return n_bytes; } // of the whole lines
    bool is_moved() const { return moved; }   // between the two steps
    int descriptor() const { return fd; }     // of the current file

  private:
    uint64_t open(bool is_new);

    std::string path;
    int fd            = -1;
    uint64_t n_bytes  = 0;
    uint64_t n_synced = 0;     // of them on the disk
    bool torn         = false; // a part of a line may stand behind them
    bool unsure       = false; // what a failed sync has left on the disk
    bool moved        = false;
};
