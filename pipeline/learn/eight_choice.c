/* One order of all items, and one walk along it. Costs are whole numbers, so that the sum does not
 * depend on the order. */
#include "pipeline/learn/eight_choice.h"

#include <stdlib.h>

typedef struct ranked {
    double worth; /* nats for a bit of one multiplication */
    int64_t cost, at;
} ranked;

static int by_worth(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->worth != y->worth) return x->worth > y->worth ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at; /* the same order everywhere */
}

void eight_choose(const llama_config *cfg, const eight_item *items, double average,
                  input_eight *out) {
    const int64_t n = cfg->layers * INPUT_PLACES;
    ranked *all = calloc((size_t)n, sizeof *all);
    int64_t m = 0, used = 0, products = 0;
    if (!all) abort();
    for (int64_t i = 0; i < n; i++) {
        const int64_t p = input_products(cfg, (input_place)(i % INPUT_PLACES)),
                      cost = p * (INPUT_EIGHT_BITS - items[i].bits);
        products += p;
        used += p * items[i].bits;
        if (cost > 0 && items[i].nats > 0)
            all[m++] = (ranked){.worth = items[i].nats / (double)cost, .cost = cost, .at = i};
    }
    qsort(all, (size_t)m, sizeof *all, by_worth);
    const double budget = average * (double)products;
    for (int64_t k = 0; k < m; k++) {
        if ((double)(used + all[k].cost) > budget) continue;
        used += all[k].cost;
        layer_flags_put(&out->at[all[k].at % INPUT_PLACES], all[k].at / INPUT_PLACES, true);
    }
    free(all);
}
