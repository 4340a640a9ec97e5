classdef ImageSource
  properties
    Source
  end
  methods
    function self = ImageSource(source)
      if ~iscellstr(source) || size(source, 2) ~= 1 || ~all(cellfun(@isfile, source))
        error('stub:ImageSource', 'an image source takes a column of names of files that are there');
      end
      self.Source = source;
    end
  end
end
