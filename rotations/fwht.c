/* The plan: how an order is cut into a Sylvester part and a core, and the core for either type. */
#include "rotations/fwht.h"

#include "base/mem.h"
#include "rotations/fwht_internal.h"
#include "rotations/hadamard.h"

enum { SMALL_CORE = 16 }; /* smaller cores take Sylvester factors in, to fill vectors */

static err fill(fwht *f) {
    int8_t *core;
    err e = MEM_NEW(&core, f->c * f->c, "core of a Hadamard matrix");
    if (!e.code) e = hadamard_matrix(f->c, core);
    for (int t = 0; t < 2 && !e.code; t++) {
        e = MEM_NEW(&f->core_f32[t], fwht_core_f32(f->c), "core of a Hadamard matrix");
        if (e.code) break;
        fwht_fill_core_f32(core, f->c, t == 1, f->core_f32[t]);
        e = MEM_NEW(&f->core_f64[t], fwht_core_f64(f->c), "core of a Hadamard matrix");
        if (e.code) break;
        fwht_fill_core_f64(core, f->c, t == 1, f->core_f64[t]);
    }
    mem_free(core);
    return e;
}

err fwht_create(int64_t n, fwht **out) {
    int64_t core, power;
    *out = NULL;
    err e = hadamard_orders(n, &core, &power, NULL);
    if (e.code) return e;
    fwht *f;
    e = MEM_NEW(&f, 1, "Hadamard transform");
    if (e.code) return e;
    f->n = n;
    f->c = core;
    while (f->c < SMALL_CORE && f->c < n) f->c *= 2;
    e = fill(f);
    if (e.code) fwht_destroy(&f);
    *out = f;
    return e;
}

void fwht_destroy(fwht **f) {
    if (!*f) return;
    for (int t = 0; t < 2; t++) {
        mem_free((*f)->core_f32[t]);
        mem_free((*f)->core_f64[t]);
    }
    mem_free(*f);
    *f = NULL;
}

int64_t fwht_size(const fwht *f) {
    return f->n;
}
