#include "so8t-answer.h"

bool so8t_answer::tells_text() const {
    return !text.empty() && !(refused() && verdict->policy->refusal_in == SO8T_REFUSAL_IN_REFUSAL);
}

bool so8t_answer::tells_refusal() const {
    return refused() && (text.empty() || verdict->policy->refusal_in != SO8T_REFUSAL_IN_CONTENT);
}
