#!/usr/bin/env bash
# One would expect: temperature scaling with a factor beta gives p = sigmoid(beta z) for the score z of a binary
# classifier, and T = 1 / beta.
# What happens: CalibratedClassifierCV(method="temperature") on a classifier with decision_function makes two columns
# (-z, z) of the score and takes the softmax, so p = sigmoid(2 beta z). The fitted beta_ is half of what one reads it
# as. On a classifier that has predict_proba only, the factor is the expected one.
# Versions: scikit-learn 1.9.1, numpy 2.4.6.
# Why it matters: whoever exports a linear probe with its temperature to another runtime as sigmoid(z / T) or
# softmax([0, z] / T) with T = 1 / beta_ gets probabilities nearer to 0.5 than those that thresholds were chosen on. T
# is 1 / (2 beta_) there.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy==2.4.6
venv/bin/python - <<'PY'
import importlib.metadata as metadata

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

print(*(f"{name} {metadata.version(name)}" for name in ("scikit-learn", "numpy")))
random = np.random.default_rng(0)
features = random.standard_normal((4000, 3))
labels = (random.random(4000) < 1 / (1 + np.exp(-features @ [2, -1, 0.5]))).astype(int)
fitted = LogisticRegression(C=1e6).fit(features[:2000], labels[:2000])


class ProbabilitiesOnly(ClassifierMixin, BaseEstimator):
    """The same classifier without decision_function."""

    def fit(self, X, y):
        self.classes_ = np.array([0, 1])
        return self

    def predict(self, X):
        return fitted.predict(X)

    def predict_proba(self, X):
        return fitted.predict_proba(X)


scores = fitted.decision_function(features[2000:])
ratios = {}
for name, classifier in (("decision_function", fitted), ("predict_proba", ProbabilitiesOnly().fit(None, None))):
    calibrated = CalibratedClassifierCV(FrozenEstimator(classifier), method="temperature").fit(features[2000:], labels[2000:])
    beta = calibrated.calibrated_classifiers_[0].calibrators[0].beta_
    p = calibrated.predict_proba(features[2000:])[:, 1]
    slope = np.polyfit(scores, np.log(p / (1 - p)), 1)[0]
    ratios[name] = slope / beta
    print(f"{name:18} beta_ {beta:.4f}, p = sigmoid({slope:.4f} z), ratio {slope / beta:.4f}")
assert abs(ratios["decision_function"] - 2) < 1e-3 and abs(ratios["predict_proba"] - 1) < 1e-3
print("as stated")
PY
