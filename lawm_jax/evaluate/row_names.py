"""Names of the rows of results that are not a model in question, as result files hold them."""

COPY = "copy last frame"
DETERMINISTIC, NONE = "deterministic", "none"  # the paper's lower and upper bound
LABELLED = "labelled"  # knows the real actions
INFERRED = "inferred latents"
COPIES_FUTURE = "copies the future"  # a control
DECODER_ALONE = "decoder alone"  # true states, decoded
# Of plans, those that need no model.
TRUTH_HELD = "truth, held"
NO_ACTION = "no action"
MEAN_ACTION = "mean action"
RANDOM_ACTION = "random action"
NEAREST = "nearest neighbour"
POLICY = "policy"
BASELINES = TRUTH_HELD, NO_ACTION, MEAN_ACTION, RANDOM_ACTION, NEAREST, POLICY
