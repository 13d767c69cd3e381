/* run_state - OUT/run, the state of an unfinished run: what is done stays done over any kill.
 *   objects/<sha256>  immutable results, named by their contents
 *   state.json        current and previous generation, each with its own hash
 *   owner             who writes here: host, pid, job, nonce, beat (io/run_owner.h)
 * Knows nothing of layers or learning: the caller keeps its progress in one JSON object (the work),
 * which a commit makes durable. Order of a commit: objects written aside, flushed and renamed; then
 * state.json written aside, flushed, renamed, folder flushed. A kill leaves the old or the new one.
 */
#ifndef SPINSHARD_IO_RUN_STATE_H
#define SPINSHARD_IO_RUN_STATE_H

#include "base/byte_piece.h"
#include "base/err.h"
#include "base/json.h"
#include "base/sha256.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct run_state run_state;

/* Root only. Take ownership of OUT/run (made if absent) and read its state. `fingerprint` is an
 * object of what the bytes depend on; a state with another one is refused with ERR_MISMATCH naming
 * the fields that differ. A damaged current generation falls back to the previous one and says so.
 * Another live owner: ERR_MISMATCH, but for take_over (io/run_owner.h). Borrows fingerprint. Caller
 * owns *out (run_state_close). */
err run_state_open(const char *out_dir, const json_t *fingerprint, bool take_over, run_state **out);

/* Root only. Gives ownership back. remove: the run is complete, remove OUT/run. */
err run_state_close(run_state **rs, bool remove);

bool run_state_resumed(const run_state *rs);      /* local: there was a state to go on from */
int run_state_slice(const run_state *rs);         /* local: restarts so far */
const char *run_state_phase(const run_state *rs); /* local: phase of the last commit */
json_t *run_state_work(run_state *rs); /* local: the caller's progress; borrowed, mutable */

/* Root only. Make the work durable under a phase name; beats the owner's heart. ERR_MISMATCH, and
 * nothing is written, where another run has taken the folder over. */
err run_state_commit(run_state *rs, const char *phase);

/* Root only. ERR_MISMATCH, naming the new owner, where another run has taken the folder over. */
err run_state_check_owner(const run_state *rs);

/* Root only. Only beat the owner's heart. */
void run_state_heartbeat(run_state *rs);

/* An object while it is written, by any rank. */
typedef struct run_object run_object;

/* Local. Start an object of known size in OUT/run/objects; caller owns *out. */
err run_object_create(const char *out_dir, uint64_t bytes, run_object **out);
err run_object_put(run_object *o, const void *data, uint64_t n, uint64_t offset);

/* Local. Hash, flush and rename it to its name; frees *o and sets it NULL, also on failure. */
err run_object_finish(run_object **o, char hex[SHA256_HEX]);
void run_object_abandon(run_object **o); /* local; NULL is fine; removes the file; sets NULL */

/* Local. A whole object of these pieces, one after the other. Fails with ERR_SPACE and leaves no
 * file. */
err run_object_write(const char *out_dir, const byte_piece *pieces, int n, char hex[SHA256_HEX]);

/* Root only, before any rank writes. Remove what a start that was killed left: objects that were
 * not finished, and those that no commit came to name. names: the keys of an object. */
void run_objects_sweep(const char *out_dir, const json_t *names);

/* Local. True for 64 lower-case hexadecimal digits: what a state file says may name anything. */
bool run_object_is_name(const char *hex);

/* Local. Path of an object; caller frees. */
char *run_object_path(const char *out_dir, const char *hex);

/* Local. Success if the object is there with this size and its contents have its hash. */
err run_object_check(const char *out_dir, const char *hex, uint64_t bytes);

/* Local. As run_object_check, and in the same pass its bytes into the pieces, which stand one after
 * the other in it; where it fails they hold anything. */
err run_object_read(const char *out_dir, const char *hex, const byte_piece *pieces, int n);

/* Local. What differs between two fingerprints, as dotted paths with both values; "" where they are
 * equal. At most a handful are named. */
void run_state_differences(const json_t *then, const json_t *now, char *list, size_t size);

/* Local. Read OUT/run/state.json without taking ownership (for status): *phase, *work and
 * *fingerprint as one object {"phase","slice","generation","work","fingerprint"}. Caller owns *out.
 */
err run_state_peek(const char *out_dir, json_t **out);

#endif
