/* A recipe in YAML; the resolved tree, written out, is a recipe that resolves to itself. */
#include "base/yaml.h"
#include "jobs/setup/recipe.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static options none = {.cmd = CMD_QUANTIZE};
    recipe *r, *again;
    char *text = strndup((const char *)data, size), *written;
    size_t len;
    fuzz_need(text != NULL, "no memory");
    err e = recipe_create(&none, text, "recipe.yaml", NULL, &r);
    free(text);
    if (e.code) return 0;
    fuzz_need(!yaml_text(recipe_tree(r), &written, &len).code, "a recipe cannot be written");
    fuzz_need(!recipe_create(&none, written, "again", NULL, &again).code,
              "a recipe is not read back");
    fuzz_need(
        json_equal((json_t *)(uintptr_t)recipe_tree(r), (json_t *)(uintptr_t)recipe_tree(again)),
        "a recipe changes when it is read back");
    free(written);
    recipe_destroy(&again);
    recipe_destroy(&r);
    return 0;
}
