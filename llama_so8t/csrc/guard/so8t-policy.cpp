#include "so8t-policy.h"

#include "common.h"

#include <cstdlib>

const char * so8t_mode_name(so8t_mode mode) {
    switch (mode) {
        case SO8T_MODE_OFF:     return "off";
        case SO8T_MODE_MONITOR: return "monitor";
        case SO8T_MODE_ENFORCE: return "enforce";
    }
    return "?";
}

const char * so8t_on_refuse_name(so8t_on_refuse on_refuse) {
    switch (on_refuse) {
        case SO8T_ON_REFUSE_STOP:    return "stop";
        case SO8T_ON_REFUSE_MESSAGE: return "message";
    }
    return "?";
}

bool so8t_policy::enforces(bool in_think) const {
    return mode == SO8T_MODE_ENFORCE && (!in_think || think == SO8T_MODE_ENFORCE);
}

double so8t_short(float value) {
    return std::strtod(string_format("%.7g", value).c_str(), nullptr);
}
