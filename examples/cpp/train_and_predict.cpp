// Trains a network to tell two spirals apart, saves it, loads it again and predicts.
#include <thalweg/thalweg.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace tw = thalweg;

namespace {

struct Points {
  std::vector<float> x;     // [rows, 2]
  std::vector<int> labels;  // [rows]
};

Points two_spirals(int rows, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  std::normal_distribution<float> noise(0.0f, 0.02f);
  Points points;
  for (int row = 0; row < rows; ++row) {
    const int label = row % 2;
    const float t = std::sqrt(uniform(generator));
    const float angle = 9.0f * t + 3.14159f * static_cast<float>(label);
    points.x.push_back(t * std::cos(angle) + noise(generator));
    points.x.push_back(t * std::sin(angle) + noise(generator));
    points.labels.push_back(label);
  }
  return points;
}

}  // namespace

int main() {
  try {
    const Points train = two_spirals(2000, 1), test = two_spirals(1000, 2);

    tw::Model model({tw::Dense{64}, tw::BatchNorm{}, tw::ReLU{},  //
                     tw::Dense{64}, tw::BatchNorm{}, tw::ReLU{},  //
                     tw::Dense{2}},
                    {.in_features = 2, .optimizer = tw::Adam{1e-2}, .seed = 0});
    model.fit(train.x, train.labels,
              {.epochs = 30,
               .batch_size = 64,
               .validation_data = tw::Validation{test.x, test.labels},
               .on_epoch = [](const tw::EpochRecord& epoch) {
                 if (epoch.epoch % 10 == 0)
                   std::printf("epoch %2d  loss %.4f  validation accuracy %.3f\n",
                               static_cast<int>(epoch.epoch), epoch.train.loss,
                               epoch.validation->accuracy);
                 return false;  // true would stop here
               }});
    model.save("spirals.safetensors");

    const tw::Model loaded = tw::Model::load("spirals.safetensors");
    std::printf("test accuracy %.3f\n", loaded.evaluate(test.x, test.labels).accuracy);
    const std::vector<float> point = {0.3f, 0.4f};
    const std::vector<float> probabilities = loaded.predict_probabilities(point);
    std::printf("(0.3, 0.4) lies on spiral 1 with probability %.3f\n",
                static_cast<double>(probabilities[1]));
  } catch (const tw::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
