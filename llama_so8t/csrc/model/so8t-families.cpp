#include "so8t-families.h"

#include "so8t-format.h"

#include <algorithm>
#include <cmath>

const std::vector<so8t_family> & so8t_families() {
#define SO8T_FAMILY(NAME, QK_NORM, ...) {NAME, QK_NORM, {__VA_ARGS__}},
    static const std::vector<so8t_family> families = {SO8T_FAMILIES(SO8T_FAMILY)};
#undef SO8T_FAMILY
    return families;
}

const so8t_family * so8t_find_family(const std::string & name) {
    const auto & all = so8t_families();
    const auto found = std::find_if(all.begin(), all.end(), [&](const so8t_family & f) { return name == f.name; });
    return found == all.end() ? nullptr : &*found;
}

llm_type so8t_model_type(const so8t_family & family, uint64_t n_params) {
    llm_type result = LLM_TYPE_UNKNOWN;
    double nearest  = std::log(1.3);
    for (const auto & size : family.sizes) {
        const double distance = std::fabs(std::log((double) n_params / size.n_params));
        if (distance <= nearest) {
            nearest = distance;
            result  = size.type;
        }
    }
    return result;
}
