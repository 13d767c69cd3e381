/* The core is Paley's construction from quadratic residues of GF(q): kind I of order q + 1 for q =
 * 3 mod 4, kind II of order 2 (q + 1) for q = 1 mod 4. Sylvester's doubling gives the rest of the
 * order (hadamard.h has the canonical form). */
#include "rotations/hadamard.h"

#include "base/mem.h"

#include <inttypes.h>
#include <stdio.h>

/* GF(q), q = p, p^2 or p^3: element i has the digits of i to base p as coefficients, lowest first.
 */
typedef struct field {
    int64_t q, p;
    int digits;
    int64_t root; /* of two digits: X^2 is this number, which is no square modulo p */
} field;

static bool is_odd_prime(int64_t p) {
    if (p < 3 || p % 2 == 0) return false;
    for (int64_t d = 3; d * d <= p; d += 2)
        if (p % d == 0) return false;
    return true;
}

static bool is_square(int64_t a, int64_t p) {
    for (int64_t x = 1; x < p; x++)
        if (x * x % p == a) return true;
    return false;
}

/* GF(p^2) as the numbers modulo p with a root of the least number that has none. */
static bool field_of_square(int64_t q, field *out) {
    int64_t p = 3, root = 2;
    while (p * p < q) p += 2;
    if (p * p != q || !is_odd_prime(p)) return false;
    while (is_square(root, p)) root++;
    *out = (field){.q = q, .p = p, .digits = 2, .root = root};
    return true;
}

/* Prime fields and GF(7^3). With squares of primes among them some orders would get a smaller core
 * and the canonical form would change (200 is a core of its own, and not twice 100): they are asked
 * only where there is nothing else. */
static bool field_find(int64_t q, bool squares, field *out) {
    if (squares) return field_of_square(q, out);
    if (q == 343) {
        *out = (field){.q = 343, .p = 7, .digits = 3};
        return true;
    }
    *out = (field){.q = q, .p = q, .digits = 1};
    return is_odd_prime(q);
}

static int64_t field_subtract(const field *f, int64_t a, int64_t b) {
    if (f->digits == 1) return (a - b + f->p) % f->p;
    int64_t sum = 0, place = 1;
    for (int d = 0; d < f->digits; d++) {
        sum += (a % f->p - b % f->p + f->p) % f->p * place;
        place *= f->p;
        a /= f->p;
        b /= f->p;
    }
    return sum;
}

/* Of three digits: the product modulo X^3 - 2, which has no root in GF(7) (cubes there are 0, 1, 6)
 * and so is irreducible. */
static int64_t field_square(const field *f, int64_t a) {
    if (f->digits == 1) return a * a % f->p;
    if (f->digits == 2) {
        const int64_t u = a % f->p, v = a / f->p;
        return (u * u + f->root * (v * v % f->p)) % f->p + f->p * (2 * u * v % f->p);
    }
    int64_t x = a % 7, y = a / 7 % 7, z = a / 49;
    int64_t one = (x * x + 2 * 2 * y * z) % 7;
    int64_t two = (2 * x * y + 2 * z * z) % 7;
    int64_t three = (2 * x * z + y * y) % 7;
    return one + 7 * two + 49 * three;
}

/* Paley I needs q = m - 1 = 3 mod 4, Paley II q = m/2 - 1 = 1 mod 4. */
static bool core_find_in(int64_t m, bool squares, field *f, hadamard_kind *kind) {
    if (m % 4) return false;
    *kind = HADAMARD_PALEY1;
    if (field_find(m - 1, squares, f)) return true;
    *kind = HADAMARD_PALEY2;
    return (m / 2 - 1) % 4 == 1 && field_find(m / 2 - 1, squares, f);
}

/* The core of order n: the least m = n / 2^k that has one. 0: there is none. */
static int64_t core_order(int64_t n, bool squares, field *f, hadamard_kind *kind) {
    int64_t m = n;
    while (m > 0 && m % 2 == 0) m /= 2;
    while (m > 1 && m <= n && m <= HADAMARD_MAX_CORE && !core_find_in(m, squares, f, kind)) m *= 2;
    return n < 1 || m > n || m > HADAMARD_MAX_CORE ? 0 : m;
}

/* The field of a core of order m itself. */
static bool core_find(int64_t m, field *f, hadamard_kind *kind) {
    return core_find_in(m, false, f, kind) || core_find_in(m, true, f, kind);
}

err hadamard_orders(int64_t n, int64_t *core, int64_t *power, hadamard_kind *kind) {
    field f;
    hadamard_kind k = HADAMARD_SYLVESTER;
    int64_t m = core_order(n, false, &f, &k);
    if (!m) m = core_order(n, true, &f, &k);
    if (!m)
        return err_make(ERR_INPUT, "Hadamard matrix", NULL,
                        "no Hadamard matrix of order %" PRId64
                        ": it is no power of two times an order of Paley's constructions",
                        n);
    if (core) *core = m;
    if (power) *power = n / m;
    if (kind) *kind = m == 1 ? HADAMARD_SYLVESTER : k;
    return err_none();
}

bool hadamard_exists(int64_t n) {
    return !hadamard_orders(n, NULL, NULL, NULL).code;
}

const char *hadamard_kind_name(hadamard_kind kind) {
    static const char *const names[] = {"sylvester", "paley-1", "paley-2"};
    return names[kind];
}

/* The quadratic character of GF(q): 0, 1 for squares, -1 for others. */
static void quadratic_character(const field *f, int8_t *chi) {
    for (int64_t a = 1; a < f->q; a++) chi[a] = -1;
    for (int64_t a = 1; a < f->q; a++) chi[field_square(f, a)] = 1;
    chi[0] = 0;
}

/* Entry of Paley's S of order q + 1: a border of ones around Q_ij = chi(i - j). For q = 3 mod 4 the
 * border turns sign below the diagonal, so that S + S^T = 0; for q = 1 mod 4 S is symmetric. */
static int paley_entry(const field *f, const int8_t *chi, int64_t i, int64_t j) {
    if (i == 0 && j == 0) return 0;
    if (i == 0) return 1;
    if (j == 0) return f->q % 4 == 3 ? -1 : 1;
    return chi[field_subtract(f, i - 1, j - 1)];
}

/* H = S + I. */
static void paley1(const field *f, const int8_t *chi, int8_t *out) {
    int64_t m = f->q + 1;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < m; j++)
            out[i * m + j] = (int8_t)(paley_entry(f, chi, i, j) + (i == j));
}

/* H = S x [1 1; 1 -1] + I x [1 -1; -1 -1]. */
static void paley2(const field *f, const int8_t *chi, int8_t *out) {
    static const int8_t off[2][2] = {{1, 1}, {1, -1}}, on[2][2] = {{1, -1}, {-1, -1}};
    int64_t half = f->q + 1, m = 2 * half;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < m; j++) {
            int s = paley_entry(f, chi, i / 2, j / 2) * off[i % 2][j % 2];
            out[i * m + j] = (int8_t)(i / 2 == j / 2 ? on[i % 2][j % 2] : s);
        }
}

static void sign_columns(int64_t m, int8_t *h) {
    for (int64_t i = m - 1; i >= 0; i--)
        for (int64_t j = 0; j < m; j++) h[i * m + j] = (int8_t)(h[i * m + j] * h[j]);
}

err hadamard_core(int64_t m, int8_t *out) {
    field f;
    hadamard_kind kind;
    if (m == 1) {
        out[0] = 1;
        return err_none();
    }
    if (m > HADAMARD_MAX_CORE || !core_find(m, &f, &kind))
        return err_make(ERR_INPUT, "Hadamard matrix", NULL,
                        "Paley's constructions give no matrix of order %" PRId64, m);
    int8_t *chi;
    err e = MEM_NEW(&chi, f.q, "quadratic character");
    if (e.code) return e;
    quadratic_character(&f, chi);
    if (kind == HADAMARD_PALEY1)
        paley1(&f, chi, out);
    else
        paley2(&f, chi, out);
    sign_columns(m, out);
    mem_free(chi);
    return e;
}

err hadamard_matrix(int64_t n, int8_t *out) {
    int64_t m = 0, power = 0;
    err e = hadamard_orders(n, &m, &power, NULL);
    if (e.code) return e;
    int8_t *core;
    e = MEM_NEW(&core, m * m, "core of a Hadamard matrix");
    if (e.code) return e;
    e = hadamard_core(m, core);
    for (int64_t i = 0; i < n && !e.code; i++)
        for (int64_t j = 0; j < n; j++) {
            /* Sylvester: the sign of (a, b) is the parity of the bits that a and b share. */
            int odd = __builtin_parityll((unsigned long long)(i / m & j / m));
            int8_t c = core[i % m * m + j % m];
            out[i * n + j] = (int8_t)(odd ? -c : c);
        }
    mem_free(core);
    return e;
}
